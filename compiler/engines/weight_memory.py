"""Where the builder reads weights from: mapped files, and for those that a plan holds in FP16, FP16 already.

Left to the builder, a cast of a BF16 or FP32 weight (or of its multiple) keeps both forms in memory, and weights that one
product takes together lie there apart and together. Here they go piece by piece through a file that has no name and vanishes
with its mapping, joined ones below each other, so memory holds one piece; the values are those of the cast.
"""

import math
import mmap
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bei.compiler.engines.behind import Write, written_behind
from bei.compiler.mapped import mapping, release
from bei.compiler.weights import Weight
from bei.errors import EngineError

_FLOAT, _HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
_CHUNK = 1 << 20
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
    external = {t.name: t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    stored = {t.name: _stored(subject, t, weights) for t in external.values()}
    factors = _taken_factors(model.graph, external)
    casts = _only_cast_to_half(model.graph)
    halved = {n for n, t in external.items() if n in factors or (n in casts and t.data_type != _HALF)}
    for name in halved:
        external[name].data_type = _HALF
    _drop_casts(model.graph, halved)
    joined = _joined(model.graph, external)
    parts = [name for names in joined.values() for name in names]
    groups = {**joined, **{name: [name] for name in external if name in halved and name not in parts}}
    try:
        arrays, mapped = _written(
            {
                name: [(stored[part], factors.get(part, 1.0)) for part in group]
                for name, group in groups.items()
            },
            folder,
        )
    except OSError as error:
        raise EngineError(
            f"{subject}: cannot write FP16 weights to {folder}: {error.strerror}. Free some space."
        ) from None
    _replace(model.graph, joined, arrays)
    kept = {name: array for name, array in stored.items() if name not in arrays and name not in parts}
    maps = [found for array in kept.values() if (found := mapping(array)) is not None]
    return WeightMemory(
        graph=bytes(model.SerializeToString()),
        arrays={**{name: np.ascontiguousarray(array) for name, array in kept.items()}, **arrays},
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
        half = node.op_type == "Cast" and node.attribute[0].i == _HALF
        for name in node.input:
            used[name] = used.get(name, True) and half
    return frozenset(name for name, only in used.items() if only)


def _taken_factors(graph: onnx.GraphProto, external: Collection[str]) -> dict[str, float]:
    """Weights of which only a multiple is used, and that only in FP16: their factors, which are not in the graph any more."""
    uses = Counter(name for node in graph.node for name in node.input)
    source = {node.output[0]: node for node in graph.node}
    numbers = {
        t.name: float(onnx.numpy_helper.to_array(t))
        for t in graph.initializer
        if not t.dims and t.name not in external
    }
    casts = _only_cast_to_half(graph)
    factors: dict[str, float] = {}
    instead: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "Mul" or node.input[1] not in numbers or node.output[0] not in casts:
            continue
        name, wide = node.input[0], source.get(node.input[0])
        if wide is not None and wide.op_type == "Cast" and wide.attribute[0].i == _FLOAT and uses[name] == 1:
            name = wide.input[0]
        if name in external and uses[name] == 1:
            factors[name] = numbers[node.input[1]]
            instead |= dict.fromkeys((node.input[0], node.output[0]), name)
    _take_out(graph, instead)
    return factors


def _drop_casts(graph: onnx.GraphProto, halved: Collection[str]) -> None:
    """Take out the casts of what is FP16 now: as copies they would cost what was saved."""
    casts = (node for node in graph.node if node.op_type == "Cast" and node.input[0] in halved)
    _take_out(graph, {node.output[0]: node.input[0] for node in casts})


def _take_out(graph: onnx.GraphProto, instead: Mapping[str, str]) -> None:
    """The nodes that make these values; whoever reads one reads the other."""
    kept = [node for node in graph.node if node.output[0] not in instead]
    for node in kept:
        node.input[:] = [instead.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(kept)


def _joined(graph: onnx.GraphProto, external: Mapping[str, onnx.TensorProto]) -> dict[str, list[str]]:
    """FP16 weights that are only used one below the other: the value they make → their names."""
    uses = Counter(name for node in graph.node for name in node.input)
    return {
        node.output[0]: list(node.input)
        for node in graph.node
        if node.op_type == "Concat"
        and node.attribute[0].i == 0
        and all(n in external and external[n].data_type == _HALF and uses[n] == 1 for n in node.input)
    }


def _replace(
    graph: onnx.GraphProto, joined: Mapping[str, Collection[str]], arrays: Mapping[str, npt.NDArray[Any]]
) -> None:
    """Joined weights instead of the parts and of what joins them."""
    parts = {name for names in joined.values() for name in names}
    nodes = [node for node in graph.node if node.output[0] not in joined]
    tensors = [tensor for tensor in graph.initializer if tensor.name not in parts]
    for name in joined:
        tensor = onnx.TensorProto(name=name, data_type=_HALF, dims=arrays[name].shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(
            key="location", value="joined"
        )  # named, as the format wants it; never opened
        tensors.append(tensor)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)


def _written(
    groups: Mapping[str, Sequence[tuple[npt.NDArray[Any], float]]], folder: Path
) -> tuple[dict[str, npt.NDArray[np.float16]], list[mmap.mmap]]:
    """The arrays of a group, each times its factor, below each other in FP16; all in one nameless file."""
    if not groups:
        return {}, []
    places, end = {}, 0
    with tempfile.TemporaryFile(dir=folder) as file:
        with written_behind(file) as write:
            for name, arrays in groups.items():
                places[name] = end
                end += sum(_write_half(write, array, factor) for array, factor in arrays)
                end += write(bytes(-end % _ALIGNED))
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    shapes = {
        name: (sum(len(array) for array, _ in arrays), *arrays[0][0].shape[1:])
        for name, arrays in groups.items()
    }
    return {
        name: np.frombuffer(mapped, np.float16, math.prod(shapes[name]), at).reshape(shapes[name])
        for name, at in places.items()
    }, [mapped]


def _write_half(write: Write, array: npt.NDArray[Any], factor: float) -> int:
    """Piece by piece, and how many bytes; a value beyond FP16 becomes infinite, as in the builder's cast."""
    flat = array.reshape(-1)
    halves = cycle([np.empty(min(_CHUNK, flat.size), np.float16) for _ in range(2)])  # one is being written
    written = 0
    with np.errstate(over="ignore"):
        for start, half in zip(range(0, flat.size, _CHUNK), halves, strict=False):
            piece = flat[start : start + _CHUNK]
            if factor != 1.0:
                piece = piece.astype(np.float32) * np.float32(factor)
            np.copyto(half[: piece.size], piece, casting="unsafe")
            written += write(half[: piece.size].data)
    mapped = mapping(array)
    release([] if mapped is None else [mapped])
    return written
