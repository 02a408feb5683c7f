"""Vectors in smaller number types. N vectors, D dimensions; x_ND is float32 and finite.

int8 has two forms, and numbers of one form cannot be compared with numbers of the other (docs/decisions/0013-two-forms-of-int8.md):

- `int8_by_row` scales each vector by itself. It needs nothing but the vector, so it is what a server gives. Directions
  (cosine) stay, lengths do not.
- `int8_by_column` divides each dimension's range over a sample into 255 steps, as sentence-transformers'
  `quantize_embeddings` does. All vectors share the scales, so that lengths still count, and whoever compares needs the
  same ranges. It is what a corpus is stored as.

Bits are the same everywhere: 1 where a number is above 0, eight dimensions a byte, the first in the highest bit.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from bei.errors import InputError
from bei.runtime.executor import Output

Int8 = npt.NDArray[np.int8]

Ranges = tuple[tuple[float, float], ...]
"""For each dimension the smallest and the largest value that `int8_by_column` tells apart; what lies outside is clipped."""

LARGEST = 127
STEPS = 255

MAX_FLOAT16 = 65504.0


def float16(x_ND: Output, subject: str) -> npt.NDArray[np.float16]:
    """Raises InputError, beginning with ``subject``, for numbers that float16 does not hold."""
    largest = float(np.abs(x_ND).max(initial=0))
    if largest > MAX_FLOAT16:
        raise InputError(
            f"{subject}: float16 ends at {MAX_FLOAT16:g}, a vector has {largest:g}. Take a wider type."
        )
    return x_ND.astype(np.float16)


def bfloat16_bits(x_ND: Output) -> npt.NDArray[np.uint16]:
    """The upper half of each float32, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(x_ND).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)
    return (rounded >> 16).astype(np.uint16)


def int8_by_row(x_ND: Output) -> Int8:
    """Each vector's largest magnitude becomes 127; a zero vector stays one."""
    largest_N1 = np.abs(x_ND).max(axis=1, keepdims=True)
    return np.rint(x_ND * (LARGEST / np.where(largest_N1 > 0, largest_N1, 1))).astype(np.int8)


def ranges_of(x_ND: Output) -> Ranges:
    """Each dimension's range over a sample of vectors."""
    return tuple(zip(x_ND.min(axis=0).tolist(), x_ND.max(axis=0).tolist(), strict=True))


def int8_by_column(x_ND: Output, ranges: Ranges) -> Int8:
    """−128 … 127 from the low to the high end of each dimension's range."""
    low_D, high_D = np.array(ranges, np.float32).T
    step_D = (high_D - low_D) / STEPS
    step_D = np.where(step_D == 0, 1, step_D)
    steps_ND = np.clip(np.floor((x_ND - low_D) / step_D), 0, STEPS)
    return np.asarray(steps_ND - 128, np.int8)


def bits(x_ND: Output) -> npt.NDArray[np.uint8]:
    """[N, ⌈D / 8⌉]"""
    packed: npt.NDArray[Any] = np.packbits(x_ND > 0, axis=-1)
    return packed


def signed_bits(x_ND: Output) -> Int8:
    """`bits` less 128, as sentence-transformers' "binary" is stored."""
    return (bits(x_ND) - np.uint8(128)).view(np.int8)
