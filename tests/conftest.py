"""Without a GPU, Triton kernels run in its interpreter, which must be chosen before anything imports Triton."""

import os

from bei.gpu import gpus

if isinstance(gpus(), str):  # the reason why there is none
    os.environ["TRITON_INTERPRET"] = "1"
