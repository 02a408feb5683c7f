"""Embeddings in other number types. n rows, d dimensions; vectors float32 [n, d].

``int8`` scales each row so that its largest magnitude is 127: directions (cosine) stay, lengths do not. ``binary`` and
``ubinary`` keep one bit a dimension (1 where the number is above 0), packed eight to an int8 or uint8, as
sentence-transformers' ``quantize_embeddings`` packs them.
"""

import sys
from binascii import b2a_base64
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bei.errors import InputError
from bei.runtime.executor import Output

Dtype = Literal["float32", "float16", "bfloat16", "int8", "binary", "ubinary"]
Endianness = Literal["little", "big", "native"]
Numbers = npt.NDArray[Any]

MAX_FLOAT16 = 65504.0


def convert(vectors: Output, dtype: Dtype) -> Numbers:
    """[n, d], or [n, ⌈d / 8⌉] for bits; bfloat16 as float32 that hold no more than bfloat16 does. Raises InputError."""
    if dtype == "float16":
        _check_float16(vectors)
        return vectors.astype(np.float16)
    if dtype == "bfloat16":
        return (_bfloat16_bits(vectors).astype(np.uint32) << 16).view(np.float32)
    if dtype == "int8":
        largest = np.abs(vectors).max(axis=1, keepdims=True)
        return np.rint(vectors * (127 / np.where(largest > 0, largest, 1))).astype(np.int8)
    if dtype in ("binary", "ubinary"):
        packed = np.packbits(vectors > 0, axis=1)
        return packed if dtype == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)
    return vectors


def as_bytes(vectors: Output, dtype: Dtype, endianness: Endianness = "little") -> Numbers:
    """What `convert` gives, in its own width and byte order: C-contiguous, ready to be sent."""
    numbers = _bfloat16_bits(vectors) if dtype == "bfloat16" else convert(vectors, dtype)
    order = sys.byteorder if endianness == "native" else endianness
    return np.ascontiguousarray(numbers.astype(numbers.dtype.newbyteorder("<" if order == "little" else ">")))


def as_base64(rows: Numbers) -> list[str]:
    """Each row of `as_bytes`, standard alphabet, padded."""
    return [b2a_base64(row.tobytes(), newline=False).decode() for row in rows]


def _bfloat16_bits(vectors: Output) -> npt.NDArray[np.uint16]:
    """The upper half of each float32, rounded to the nearest, ties to even. Finite numbers only."""
    bits = np.ascontiguousarray(vectors).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)
    return (rounded >> 16).astype(np.uint16)


def _check_float16(vectors: Output) -> None:
    largest = float(np.abs(vectors).max(initial=0))
    if largest > MAX_FLOAT16:
        raise InputError(
            f"embed_dtype: float16 ends at {MAX_FLOAT16:g}, a vector has {largest:g}. Take bfloat16."
        )
