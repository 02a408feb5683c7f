"""The process that does work: requests on standard input, a line each, answers on standard output.

When standard input ends in the middle of some work, whoever asked is gone or wants no more: the work is interrupted, as
by Ctrl-C, so that it leaves nothing behind.
"""

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable

from bei.command import INTERRUPTED

GRACE = 20.0
"""Seconds between the interrupt and the end of the process, for libraries that do not let go."""


def main() -> int:
    """Do what bei is asked for."""
    from bei.compiler.fleet.do import do

    return serve(do)


def serve(do: Callable[[bytes], bytes]) -> int:
    """Answer until there are no more requests."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started us may ignore it
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_listen, args=(requests, busy), daemon=True).start()
    try:
        while (request := requests.get()) is not None:
            busy.set()
            answers.write(do(request) + b"\n")
            answers.flush()
            busy.clear()
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _listen(requests: "queue.SimpleQueue[bytes | None]", busy: threading.Event) -> None:
    for line in sys.stdin.buffer:
        requests.put(line)
    requests.put(None)
    if busy.is_set():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(GRACE)
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
