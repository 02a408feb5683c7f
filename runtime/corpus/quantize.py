"""Smaller vectors, as sentence-transformers' `quantize_embeddings` defines them. N vectors, D dimensions."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bei.runtime.executor import Output

Dtype = Literal["float32", "float16", "int8", "binary"]
DTYPES: tuple[Dtype, ...] = ("float32", "float16", "int8", "binary")

Ranges = tuple[tuple[float, float], ...]
"""For each dimension the smallest and the largest value that int8 tells apart; what lies outside is clipped."""

STEPS = 255


def ranges_of(x_ND: Output) -> Ranges:
    """Each dimension's range over a sample of vectors."""
    return tuple(zip(x_ND.min(axis=0).tolist(), x_ND.max(axis=0).tolist(), strict=True))


def quantize(x_ND: Output, dtype: Dtype, ranges: Ranges | None = None) -> npt.NDArray[Any]:
    """float32 [N, D] → the dtype asked for, [N, D]; binary: int8 [N, ⌈D/8⌉], eight dimensions' signs a number, the
    first in the highest bit, less 128. int8 needs ``ranges``."""
    if dtype == "int8":
        assert ranges is not None
        low_D, high_D = np.array(ranges, np.float32).T
        step_D = (high_D - low_D) / STEPS
        step_D = np.where(step_D == 0, 1, step_D)
        steps_ND = np.clip(np.floor((x_ND - low_D) / step_D), 0, STEPS)
        return np.asarray(steps_ND - 128, np.int8)
    if dtype == "binary":
        return (np.packbits(x_ND > 0, axis=-1) - np.uint8(128)).view(np.int8)
    stored: npt.NDArray[Any] = x_ND.astype(np.dtype(dtype), copy=False)
    return stored


def width(dimensions: int, dtype: Dtype) -> int:
    """Numbers in a stored vector."""
    return -(-dimensions // 8) if dtype == "binary" else dimensions
