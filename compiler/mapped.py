"""Mapped files that do not stay in memory: pages that were read are given back, and come from the file when needed again.

Without this the kernel counts every page of a checkpoint that was once looked at as this process's memory.
"""

import ctypes
import mmap
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt

_KEPT = 256 << 20
"""Bytes that may stay: what is given back too soon is read again."""
_SECONDS = 0.02
"""Between two looks at how much there is. A builder reads up to 10 GB a second."""

Region = tuple[int, int]
"""Address and size."""


def mapping(array: npt.NDArray[Any]) -> mmap.mmap | None:
    """The mapping behind an array that is one (`numpy.memmap`)."""
    return getattr(array, "_mmap", None)


def release(maps: Collection[mmap.mmap]) -> None:
    """Give back the pages that were read so far."""
    if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        for mapped in maps:
            mapped.madvise(mmap.MADV_DONTNEED)


def regions(files: Collection[Path]) -> frozenset[Region]:
    """Where this process has ``files`` mapped, by whatever library, and has written nothing into the mapping; nowhere where
    the system does not say."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return frozenset()
    wanted = {str(file.resolve()) for file in files}
    found, region = set(), None
    for line in lines:
        first, *rest = line.split(maxsplit=5)
        if not first.endswith(":"):  # a mapping; what is known of it follows
            start, stop = (int(address, 16) for address in first.split("-"))
            region = (start, stop - start) if rest[-1] in wanted else None
        elif region is not None and first == "Anonymous:" and rest[0] == "0":
            found.add(region)
    return frozenset(found)


def release_regions(files: Collection[Path], own: frozenset[Region]) -> None:
    """The same for those ``own`` regions of ``files`` that are still there, with nothing written into them."""
    if found := own & regions(files):  # none on systems without this call
        madvise = ctypes.CDLL(None).madvise
        for start, size in found:
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


@contextmanager
def not_resident(give_back: Callable[[], None]) -> Iterator[None]:
    """Within the block a thread looks how much of mapped files is in memory, and gives it back where it is much; at the
    end all is given back."""
    done = threading.Event()

    def watch() -> None:
        low = _resident()
        while not done.wait(_SECONDS):
            now = _resident()
            low = min(low, now)
            if now > low + _KEPT:
                give_back()
                low = _resident()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        give_back()


def _resident() -> int:
    """Bytes of all mapped files in memory, programs and libraries too; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[2]) * mmap.PAGESIZE
    except OSError:
        return 0
