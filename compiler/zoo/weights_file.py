"""Writing safetensors files tensor by tensor, so that no file has to fit into memory; or as a hole of the right size.

The layout is the safetensors library's own, byte for byte: tensors by dtype (its order, widest first), then by name,
and a header in compact JSON, padded with spaces to a multiple of 8 bytes.
"""

import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bei.compiler.zoo.shapes import TensorSpec

Values = Callable[[TensorSpec], Iterable[npt.NDArray[Any]]]
"""A tensor's values in row-major order, in chunks of any size, in the stored dtype."""

_RANK: Mapping[str, int] = {"I64": 0, "F32": 1, "BF16": 2, "F16": 3}


def header_bytes(tensors: Sequence[TensorSpec], *, metadata: bool = True, padded: bool = True) -> bytes:
    """The file up to its data; ``metadata``: with `__metadata__`, ``padded`` False: as writers before 0.3 did."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}} if metadata else {}
    start = 0
    for spec in stored_order(tensors):
        end = start + spec.nbytes
        entries[spec.name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    if padded:
        text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def file_size(tensors: Sequence[TensorSpec], *, metadata: bool = True, padded: bool = True) -> int:
    """Bytes of the whole file."""
    header = header_bytes(tensors, metadata=metadata, padded=padded)
    return len(header) + sum(spec.nbytes for spec in tensors)


def write_weights(
    path: Path,
    tensors: Sequence[TensorSpec],
    values: Values | None,
    *,
    metadata: bool = True,
    padded: bool = True,
) -> None:
    """Write one file; ``values`` None leaves the data a hole that reads as zeros and takes no space."""
    with path.open("wb") as file:
        file.write(header_bytes(tensors, metadata=metadata, padded=padded))
        if values is None:
            file.truncate(file_size(tensors, metadata=metadata, padded=padded))
            return
        for spec in stored_order(tensors):
            written = sum(file.write(_raw(chunk)) for chunk in values(spec))
            assert written == spec.nbytes, f"{spec.name}: {written} bytes, need {spec.nbytes}"


def stored_order(tensors: Iterable[TensorSpec]) -> list[TensorSpec]:
    """By dtype, then by name."""
    return sorted(tensors, key=lambda spec: (_RANK[spec.dtype], spec.name))


def _raw(chunk: npt.NDArray[Any]) -> memoryview:
    """As bytes: the buffer protocol does not know bfloat16."""
    return chunk.reshape(-1).view(np.uint8).data


def split_shards(tensors: Sequence[TensorSpec], count: int) -> list[tuple[TensorSpec, ...]]:
    """``count`` consecutive parts of about equal size, none of them empty; there must be as many tensors."""
    total = sum(spec.nbytes for spec in tensors)
    parts: list[list[TensorSpec]] = [[]]
    before = 0
    for left, spec in zip(range(len(tensors), 0, -1), tensors, strict=True):
        missing = count - len(parts)
        reached = before * count >= total * len(parts)
        if missing and parts[-1] and (reached or left <= missing):
            parts.append([])
        parts[-1].append(spec)
        before += spec.nbytes
    return [tuple(part) for part in parts]
