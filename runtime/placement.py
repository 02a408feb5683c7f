"""Which cores the threads of a CPU engine run on.

Left alone, a kernel in a virtual machine often wakes an engine's second thread on the core of the first after some milliseconds
in which the other one was idle, and the call takes as long as with one thread. So the pool's threads stay each on a core of its
own, and a call begins on a core where no other one did (docs/decisions/0017).
"""

import contextlib
import os
import threading
from bisect import insort
from collections.abc import Iterator, Sequence
from functools import lru_cache


class Placement:
    """``cores``, in ascending order, of a process's calls."""

    def __init__(self, cores: Sequence[int]) -> None:
        self.cores = tuple(cores)
        self._free = list(cores)
        self._changing = threading.Lock()

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Begin on the first core that no other call has, if there is one. The kernel may move the thread from there."""
        with self._changing:
            core = self._free.pop(0) if self._free else None
        if core is None:
            yield
            return
        try:
            _move(core)
            yield
        finally:
            with self._changing:
                insort(self._free, core)


def placement(threads: int) -> Placement | None:
    """Of an engine with so many threads, the caller's among them; the same for all engines of a process. None where they
    are not as many as the cores of this process: whoever has the other cores may have chosen the same ones."""
    if threads == 1 or not hasattr(os, "sched_setaffinity"):
        return None
    cores = os.sched_getaffinity(0)
    return _of_process(tuple(sorted(cores))) if len(cores) == threads else None


_of_process = lru_cache(Placement)


def _move(core: int) -> None:
    """The calling thread, which may then run where it might before."""
    allowed = os.sched_getaffinity(0)
    if core not in allowed:
        return
    with contextlib.suppress(OSError):  # the core was taken from the process meanwhile
        os.sched_setaffinity(0, {core})
        os.sched_setaffinity(0, allowed)
