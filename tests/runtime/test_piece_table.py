"""Short byte strings to numbers: equal to a dictionary, whatever the strings are and however they collide."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bei.runtime import piece_table
from bei.runtime.piece_table import LANES, LONGEST, Lanes, PieceTable, Places, lanes_of

PIECE = st.binary(max_size=LONGEST).map(lambda piece: piece.replace(b"\0", b"."))


def lanes(pieces: list[bytes]) -> Lanes:
    """Of pieces that lie one right after the other, so that each one's neighbour must be masked."""
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    data = np.frombuffer(b"".join(pieces) + bytes(LONGEST), np.uint8)
    return lanes_of(data, np.cumsum(lengths) - lengths, lengths)


def numbers(first: int, count: int) -> Places:
    return np.arange(first, first + count, dtype=np.int64)


def test_lanes_hold_the_bytes_of_a_piece_and_zeros() -> None:
    pieces = [bytes(range(1, length + 1)) for length in range(LONGEST + 3)]
    got = lanes(pieces).T.astype("<u8").tobytes()
    assert got == b"".join(piece[:LONGEST].ljust(LONGEST, b"\0") for piece in pieces)


@given(st.lists(st.lists(PIECE, max_size=30, unique=True), max_size=5), st.lists(PIECE, max_size=10))
def test_it_finds_what_a_dictionary_finds(added: list[list[bytes]], asked: list[bytes]) -> None:
    table, want = PieceTable(bits=2), dict[bytes, int]()
    for pieces in added:
        new = [piece for piece in pieces if piece not in want]
        table.add(lanes(new), numbers(len(want), len(new)))
        want |= {piece: len(want) + i for i, piece in enumerate(new)}
        everything = [*want, *asked]
        assert table.find(lanes(everything)).tolist() == [want.get(piece, -1) for piece in everything]
        assert 2 * np.count_nonzero(table._numbers >= 0) <= len(table._numbers)


def test_pieces_that_all_want_one_slot_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piece_table, "FACTORS", np.zeros(LANES, np.uint64))
    pieces = [b"%d" % number for number in range(300)]
    table = PieceTable()
    table.add(lanes(pieces), numbers(0, 300))
    assert table.find(lanes([*pieces, b"other"])).tolist() == [*range(300), -1]
