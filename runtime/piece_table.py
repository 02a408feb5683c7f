"""Short byte strings to numbers, many at a time: a hash table in arrays, for the pieces of texts.

n pieces, each a stretch of one buffer, as `LANES` words of 8 bytes that hold them exactly: what lies beyond a piece's end is 0,
so pieces that hold a 0 byte have no place here.
"""

import secrets
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

LANES = 3
LONGEST = 8 * LANES
"""Bytes."""

Bytes: TypeAlias = npt.NDArray[np.uint8]
Lanes: TypeAlias = npt.NDArray[np.uint64]
Places: TypeAlias = npt.NDArray[np.int64]

FREE = np.uint64(2**64 - 1)
"""In the lanes of a free slot; no piece of text has it, since UTF-8 has no such byte."""
MASKS = np.array([2 ** (8 * n) - 1 for n in range(9)], np.uint64)
FACTORS = np.array([secrets.randbits(64) | 1 for _ in range(LANES)], np.uint64)
"""Others in every process, so that nobody can send words that all want one slot."""


def lanes_of(data: Bytes, starts: Places, lengths: Places) -> Lanes:
    """[LANES, n]. ``data`` must go on for `LONGEST` bytes after the last start; what is longer than that is cut."""
    at = np.ndarray((len(data) - 7,), np.dtype("<u8"), data, strides=(1,))
    lanes = np.zeros((LANES, len(starts)), np.uint64)
    lanes[0] = at[starts] & MASKS.take(lengths, mode="clip")
    for lane in range(1, LANES):
        (far,) = np.nonzero(lengths > 8 * lane)
        lanes[lane, far] = at[starts[far] + 8 * lane] & MASKS.take(lengths[far] - 8 * lane, mode="clip")
    return lanes


class PieceTable:
    """Open addressing, at most half full; the steps grow by one, which reaches every slot. One thread at a time."""

    def __init__(self, bits: int = 12) -> None:
        self._clear(bits)

    def find(self, lanes: Lanes) -> Places:
        """Each piece's number, -1 where it has none."""
        slots = self._slots(lanes)
        found = self._numbers[slots]
        (others,) = np.nonzero(~self._same(slots, lanes) & (found >= 0))
        step = 0
        while others.size:
            step += 1
            slots[others] = there = (slots[others] + step) & self._last
            found[others] = self._numbers[there]
            others = others[~self._same(there, lanes[:, others]) & (found[others] >= 0)]
        return found

    def add(self, lanes: Lanes, numbers: Places) -> None:
        """Pieces that are all different and have no number yet."""
        if 2 * (self._used + len(numbers)) > self._last:
            self._grow(self._used + len(numbers))
        self._used += len(numbers)
        slots = self._slots(lanes)
        left, step = np.arange(len(numbers)), 0
        while left.size:
            wanted = slots[left]
            free = self._numbers[wanted] < 0
            self._numbers[wanted[free]] = numbers[left[free]]  # of several that want one slot the last has it
            has = self._numbers[wanted] == numbers[left]
            self._lanes[:, wanted[has]] = lanes[:, left[has]]
            left = left[~has]
            step += 1
            slots[left] = (slots[left] + step) & self._last

    def _grow(self, pieces: int) -> None:
        """Make room for so many."""
        used = self._numbers >= 0
        lanes, numbers = self._lanes[:, used], self._numbers[used]
        self._clear((2 * pieces).bit_length())
        self.add(lanes, numbers)

    def _clear(self, bits: int) -> None:
        self._shift = np.uint64(64 - bits)
        self._last = (1 << bits) - 1
        self._lanes = np.full((LANES, 1 << bits), FREE)
        self._numbers = np.full(1 << bits, -1, np.int64)
        self._used = 0

    def _slots(self, lanes: Lanes) -> Places:
        mixed = lanes[0] * FACTORS[0]
        for lane in range(1, LANES):
            mixed ^= lanes[lane] * FACTORS[lane]
        mixed ^= mixed >> np.uint64(32)
        mixed *= FACTORS[0]
        slots: Places = (mixed >> self._shift).view(np.int64)
        return slots

    def _same(self, slots: Places, lanes: Lanes) -> npt.NDArray[np.bool_]:
        same: npt.NDArray[np.bool_] = self._lanes[0][slots] == lanes[0]
        for lane in range(1, LANES):
            same &= self._lanes[lane][slots] == lanes[lane]
        return same
