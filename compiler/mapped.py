"""Mapped files that do not stay in memory: pages that were read are given back, and come from the file when needed again.

Without this the kernel counts every page of a checkpoint that was once looked at as this process's memory.
"""

import mmap
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy.typing as npt

_SECONDS = 1.0  # between two looks at what was read: what was given back is read again, four times as often cost a build of 600 MB a second


def mapping(array: npt.NDArray[Any]) -> mmap.mmap | None:
    """The mapping behind an array that is one (`numpy.memmap`)."""
    return getattr(array, "_mmap", None)


def release(maps: Collection[mmap.mmap]) -> None:
    """Give back the pages that were read so far."""
    if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        for mapped in maps:
            mapped.madvise(mmap.MADV_DONTNEED)


@contextmanager
def not_resident(maps: Collection[mmap.mmap]) -> Iterator[None]:
    """Within the block a thread releases them again and again."""
    done = threading.Event()

    def give_back() -> None:
        while not done.wait(_SECONDS):
            release(maps)

    thread = threading.Thread(target=give_back, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        release(maps)
