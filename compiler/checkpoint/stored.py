"""A tensor as it lies in a safetensors file: nothing is read until someone asks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""safetensors' dtype names that a checkpoint may hold; weights must be F32, F16 or BF16."""

WEIGHT_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """``file`` is relative to the checkpoint's folder (posix); ``offset`` counts bytes from the file's start."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def array(self, folder: Path) -> npt.NDArray[Any]:
        """A read-only memory map of the stored values, in the stored dtype."""
        dtype = DTYPES[self.dtype]
        if self.nbytes == 0:
            return np.empty(self.shape, dtype)
        return np.memmap(folder / self.file, dtype, "r", self.offset, self.shape)
