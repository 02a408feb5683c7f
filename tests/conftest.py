"""Without a GPU, Triton kernels run in its interpreter, which must be chosen before anything imports Triton.

A shell that starts the suite in the background has it ignore Ctrl-C; the tests that send it want it as a user has it.
"""

import os
import signal

from bei.gpu import gpus

if isinstance(gpus(), str):  # the reason why there is none
    os.environ["TRITON_INTERPRET"] = "1"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
