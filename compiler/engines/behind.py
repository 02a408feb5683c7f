"""Writing one piece behind: whoever makes the pieces does not wait until each is copied to the file."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeAlias

Piece: TypeAlias = bytes | memoryview
Write: TypeAlias = Callable[[Piece], int]


@contextmanager
def written_behind(file: BinaryIO) -> Iterator[Write]:
    """A ``write`` that returns at once, with the piece's size; the piece must stay as it is until the next call is done.

    What fails raises in the next call, or at the end of the block: OSError.
    """
    behind: Future[Any] | None = None
    with ThreadPoolExecutor(1) as thread:

        def write(piece: Piece) -> int:
            nonlocal behind
            if behind is not None:
                behind.result()
            behind = thread.submit(file.write, piece)
            return memoryview(piece).nbytes

        yield write
        if behind is not None:
            behind.result()
