"""A file written one piece behind: in order, whole, and what fails is heard."""

import errno
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bei.compiler.engines.behind import written_behind


def test_pieces_arrive_in_order(tmp_path: Path) -> None:
    halves = np.arange(5, dtype=np.float16)
    with (tmp_path / "file").open("wb") as file, written_behind(file) as write:
        assert [write(b"one "), write(halves.data), write(b"")] == [4, 10, 0]
    assert (tmp_path / "file").read_bytes() == b"one " + halves.tobytes()


class Slow:
    """Writes when it is let; the second piece finds the disk full."""

    def __init__(self) -> None:
        self.pieces: list[Any] = []
        self.let = threading.Event()

    def write(self, piece: Any) -> int:
        assert self.let.wait(60)
        if self.pieces:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.pieces.append(piece)
        return len(piece)


@pytest.mark.parametrize("more", [0, 1])
def test_the_maker_goes_on_and_hears_of_a_failure_later(more: int) -> None:
    file, said = Slow(), []
    with pytest.raises(OSError, match="No space left"), written_behind(file) as write:  # type: ignore[arg-type]
        write(b"first")
        assert file.pieces == []
        file.let.set()
        write(b"second")
        for _ in range(more):
            write(b"third")
        said.append("the end of the block")
    assert file.pieces == [b"first"]
    assert said == ["the end of the block"] * (1 - more)
