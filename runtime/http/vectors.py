"""Embeddings in the number types and forms that a request may ask for. n rows, d dimensions; vectors float32 [n, d]."""

import sys
from binascii import b2a_base64
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bei.runtime.executor import Output
from bei.runtime.quantize import bfloat16_bits, bits, float16, int8_by_row, signed_bits

Dtype = Literal["float32", "float16", "bfloat16", "int8", "binary", "ubinary"]
Endianness = Literal["little", "big", "native"]
Numbers = npt.NDArray[Any]


def convert(vectors: Output, dtype: Dtype) -> Numbers:
    """[n, d], or [n, ⌈d / 8⌉] for bits; bfloat16 as float32 that hold no more than bfloat16 does. Raises InputError."""
    if dtype == "float16":
        return float16(vectors, "embed_dtype")
    if dtype == "bfloat16":
        return (bfloat16_bits(vectors).astype(np.uint32) << 16).view(np.float32)
    if dtype == "int8":
        return int8_by_row(vectors)
    if dtype == "ubinary":
        return bits(vectors)
    return signed_bits(vectors) if dtype == "binary" else vectors


def as_bytes(vectors: Output, dtype: Dtype, endianness: Endianness = "little") -> Numbers:
    """What `convert` gives, in its own width and byte order: C-contiguous, ready to be sent."""
    numbers = bfloat16_bits(vectors) if dtype == "bfloat16" else convert(vectors, dtype)
    order = sys.byteorder if endianness == "native" else endianness
    return np.ascontiguousarray(numbers.astype(numbers.dtype.newbyteorder("<" if order == "little" else ">")))


def as_base64(rows: Numbers) -> list[str]:
    """Each row of `as_bytes`, standard alphabet, padded."""
    return [b2a_base64(row.tobytes(), newline=False).decode() for row in rows]
