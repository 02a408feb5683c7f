"""Weights on their way to the builder: mapped, FP16 where the plan holds FP16, the very values of the cast."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from bei.compiler.engines.weight_memory import weight_memory
from bei.compiler.mapped import not_resident, release
from bei.errors import EngineError
from tests.compiler.engines.small import BERT, graph
from tests.compiler.resident import NEEDS_PROC, resident_kib


def test_what_is_only_cast_to_fp16_becomes_fp16(tmp_path: Path) -> None:
    emitted = graph(BERT, tmp_path, "padded")
    memory = weight_memory("here", emitted.serialize(), emitted.weights, tmp_path)
    model = onnx.ModelProto.FromString(memory.graph)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert memory.arrays.keys() == emitted.weights.keys()
    for name, weight in emitted.weights.items():
        half = name == "embed.tokens.weight" or (name.startswith("layers.") and "norm" not in name)
        assert types[name] == (onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT), name
        expected = weight.stored().astype(np.float16) if half else weight.stored()
        assert memory.arrays[name].dtype == expected.dtype
        assert np.array_equal(memory.arrays[name], expected)
    onnx.checker.check_graph(_without_data(model), onnx.checker.DEFAULT_CONTEXT)


def _without_data(model: onnx.ModelProto) -> onnx.GraphProto:
    """Initializers as inputs: the checker would look for their files."""
    bare = onnx.GraphProto()
    bare.CopyFrom(model.graph)
    del bare.initializer[:]
    for tensor in model.graph.initializer:
        bare.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return bare


def test_weights_survive_that_their_pages_are_given_back(tmp_path: Path) -> None:
    emitted = graph(BERT, tmp_path, "padded")
    memory = weight_memory("here", emitted.serialize(), emitted.weights, tmp_path)
    before = {name: array.copy() for name, array in memory.arrays.items()}
    assert memory.maps
    threads = threading.active_count()
    with not_resident(memory.maps):
        for _ in range(3):
            assert all(np.array_equal(memory.arrays[name], array) for name, array in before.items())
            release(memory.maps)
    assert threading.active_count() == threads
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors"]


@NEEDS_PROC
def test_what_was_read_does_not_stay_in_memory(tmp_path: Path) -> None:
    def resident() -> int:
        return resident_kib(tmp_path / "model.safetensors")

    emitted = graph(BERT, tmp_path, "padded")
    memory = weight_memory("here", emitted.serialize(), emitted.weights, tmp_path)
    assert sum(float(array.sum()) for array in memory.arrays.values()) != 0
    assert resident() > 0
    with not_resident(memory.maps):
        limit = time.monotonic() + 60
        while resident() > 0:
            assert time.monotonic() < limit
            time.sleep(0.01)


def test_a_weight_with_two_uses_stays_as_it_is(tmp_path: Path) -> None:
    emitted = graph(BERT, tmp_path, "padded")
    model = onnx.ModelProto.FromString(emitted.serialize())
    name = "layers.0.up.weight"
    model.graph.node.append(onnx.helper.make_node("Identity", [name], ["seen"]))
    memory = weight_memory("here", model.SerializeToString(), emitted.weights, tmp_path)
    assert memory.arrays[name].dtype == np.float32


def test_a_value_beyond_fp16_is_infinite_as_in_the_cast(tmp_path: Path) -> None:
    emitted = graph(BERT, tmp_path, "padded")
    name = "layers.0.up.weight"
    data = emitted.weights[name].float32().copy()
    data[0, 0] = 1e6
    weights = {**emitted.weights, name: replace(emitted.weights[name], data=data)}
    memory = weight_memory("here", emitted.serialize(), weights, tmp_path)
    assert np.isposinf(memory.arrays[name][0, 0])


def test_no_room_for_fp16_weights(tmp_path: Path) -> None:
    emitted = graph(BERT, tmp_path, "padded")
    with pytest.raises(EngineError, match=r"here: cannot write FP16 weights to .*nowhere"):
        weight_memory("here", emitted.serialize(), emitted.weights, tmp_path / "nowhere")
