"""Where the builder reads weights from: mapped files, and for those that a plan holds in FP16, FP16 already.

Left to the builder, a cast of a BF16 or FP32 weight keeps both forms in memory. Here it goes tensor by tensor through a
file that has no name and vanishes with its mapping, so memory holds one tensor; the values are those of the cast.
"""

import mmap
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx

from bei.compiler.mapped import mapping, release
from bei.compiler.weights import Weight
from bei.errors import EngineError

_CHUNK = 1 << 22
_ALIGNED = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightMemory:
    """``graph`` takes ``arrays`` for its external initializers. Their memory lives as long as this does."""

    graph: bytes
    arrays: Mapping[str, npt.NDArray[Any]]
    maps: tuple[mmap.mmap, ...] = ()


def weight_memory(subject: str, graph: bytes, weights: Mapping[str, Weight], folder: Path) -> WeightMemory:
    """Weights for every external initializer of ``graph``; ``folder`` has room for those that become FP16.

    Raises EngineError, beginning with ``subject``, for a weight that is missing or of another size, and for a full disk.
    """
    model = onnx.ModelProto.FromString(graph)
    external = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    stored = {t.name: _stored(subject, t, weights) for t in external}
    half = onnx.TensorProto.FLOAT16
    casts = _only_cast_to_half(model.graph)
    halved = [t for t in external if t.name in casts and t.data_type != half]
    try:
        arrays, mapped = _halved(halved, stored, folder)
    except OSError as error:
        raise EngineError(
            f"{subject}: cannot write FP16 weights to {folder}: {error.strerror}. Free some space."
        ) from None
    for tensor in halved:
        tensor.data_type = half
    _drop_casts(model.graph, {tensor.name for tensor in halved})
    maps = [m for name, array in stored.items() if name not in arrays and (m := mapping(array)) is not None]
    return WeightMemory(
        graph=bytes(model.SerializeToString()),
        arrays={**{name: np.ascontiguousarray(array) for name, array in stored.items()}, **arrays},
        maps=(*maps, *mapped),
    )


def _stored(subject: str, tensor: onnx.TensorProto, weights: Mapping[str, Weight]) -> Any:
    if tensor.name not in weights:
        raise EngineError(f"{subject}: the graph refers to weight {tensor.name!r}, which was not given.")
    array = weights[tensor.name].stored()
    needed = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    for size in tensor.dims:
        needed *= size
    if array.nbytes != needed:
        raise EngineError(
            f"{subject}: weight {tensor.name!r} has {array.nbytes} bytes, the graph needs {needed}."
        )
    return array


def _only_cast_to_half(graph: onnx.GraphProto) -> frozenset[str]:
    """Values that nothing reads but casts to FLOAT16."""
    used: dict[str, bool] = {}
    for node in graph.node:
        half = node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.FLOAT16
        for name in node.input:
            used[name] = used.get(name, True) and half
    return frozenset(name for name, only in used.items() if only)


def _drop_casts(graph: onnx.GraphProto, halved: Collection[str]) -> None:
    """Take out the casts of what is FP16 now: as copies they would cost what was saved."""
    same: dict[str, str] = {}
    kept = []
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in halved:
            same[node.output[0]] = node.input[0]
            continue
        node.input[:] = [same.get(name, name) for name in node.input]
        kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _halved(
    tensors: list[onnx.TensorProto], stored: Mapping[str, npt.NDArray[Any]], folder: Path
) -> tuple[dict[str, npt.NDArray[np.float16]], list[mmap.mmap]]:
    """The tensors in FP16, in one nameless file."""
    if not tensors:
        return {}, []
    places: dict[str, int] = {}
    with tempfile.TemporaryFile(dir=folder) as file:
        for tensor in tensors:
            places[tensor.name] = file.tell()
            _write_half(file, stored[tensor.name])
            file.write(bytes(-file.tell() % _ALIGNED))
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return {
        name: np.frombuffer(mapped, np.float16, stored[name].size, at).reshape(stored[name].shape)
        for name, at in places.items()
    }, [mapped]


def _write_half(file: BinaryIO, array: npt.NDArray[Any]) -> None:
    """Piece by piece; a value beyond FP16 becomes infinite, as in the builder's cast."""
    flat = array.reshape(-1)
    with np.errstate(over="ignore"):
        file.writelines(
            flat[start : start + _CHUNK].astype(np.float16).tobytes() for start in range(0, flat.size, _CHUNK)
        )
    mapped = mapping(array)
    release([] if mapped is None else [mapped])
