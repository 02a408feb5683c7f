"""The C library's heap while a builder runs: what is freed goes back to the system at once.

glibc keeps large blocks once it has seen some freed, and a builder's copies of the weights, one set after the other, then
lie beside each other. Other C libraries are left as they are.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's mallopt
_SMALL, _LARGEST = 1 << 20, 32 << 20  # the second is what glibc may set by itself


@contextmanager
def giving_back() -> Iterator[None]:
    """Within the block every larger piece of memory is the system's again when it is freed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    try:
        mallopt(_MMAP_THRESHOLD, _SMALL)
        mallopt(_TRIM_THRESHOLD, _SMALL)
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)
