"""Weights on their way to the builder: mapped, FP16 where the plan holds FP16, the very values of the cast."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from bei.compiler.engines.weight_memory import weight_memory
from bei.compiler.lowering.emit import emit
from bei.compiler.lowering.policy import TENSORRT
from bei.compiler.mapped import release
from bei.compiler.precision.policy import Policy
from bei.errors import EngineError
from tests.compiler.engines.small import BERT, HEAD, graph, random_weights

JOINED = ("q", "k", "v")


def test_what_is_only_cast_to_fp16_becomes_fp16(tmp_path: Path) -> None:
    emitted = graph(BERT, tmp_path, "padded", joined=False)
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


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weights_of_one_product_lie_below_each_other(dtype: Any, tmp_path: Path) -> None:
    weights = random_weights(BERT, tmp_path, dtype)
    emitted = emit(BERT, HEAD, weights, TENSORRT)
    memory = weight_memory("here", emitted.serialize(), emitted.weights, tmp_path)
    model = onnx.ModelProto.FromString(memory.graph)
    assert not any(node.op_type == "Concat" for node in model.graph.node if node.output[0] in memory.arrays)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    joined = [name for name in memory.arrays if name not in weights]
    assert len(joined) == 2 * len(BERT.layers)  # weights and biases
    found = [memory.arrays[name] for name in joined]
    for i in range(len(BERT.layers)):
        for kind in ("weight", "bias"):
            parts = [weights[f"layers.{i}.{name}.{kind}"].stored() for name in JOINED]
            whole = np.concatenate(parts).astype(np.float16)
            assert sum(array.shape == whole.shape and np.array_equal(array, whole) for array in found) == 1
            assert all(f"layers.{i}.{name}.{kind}" not in shapes for name in JOINED)
    assert all(shapes[name] == memory.arrays[name].shape for name in joined)
    onnx.checker.check_graph(_without_data(model), onnx.checker.DEFAULT_CONTEXT)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_what_range_folding_multiplies_is_multiplied_on_the_way(dtype: Any, tmp_path: Path) -> None:
    weights = random_weights(BERT, tmp_path, dtype)
    policy = Policy(scales={"layers.0.k": 2.0**-6, "layers.1.v": 0.5})
    emitted = emit(BERT, HEAD, weights, TENSORRT, policy)
    memory = weight_memory("here", emitted.serialize(), emitted.weights, tmp_path)
    model = onnx.ModelProto.FromString(memory.graph)
    made = {value: node for node in model.graph.node for value in node.output}
    stored = {tensor.name: memory.arrays.get(tensor.name) for tensor in model.graph.initializer}
    found = 0
    for node in model.graph.node:
        product = made.get(node.input[1]) if node.op_type == "MatMul" else None
        if product is None or product.op_type != "Transpose":
            continue
        (wide,) = made[product.input[0]].input
        assert (
            wide in stored
        )  # nothing is left to compute but the cast that makes products accumulate in fp32
        found += 1
    assert found == 4 * len(BERT.layers)
    for i, scales in enumerate(((1.0, 2.0**-6, 1.0), (1.0, 1.0, 0.5))):
        parts = [weights[f"layers.{i}.{n}.weight"].float32() * s for n, s in zip(JOINED, scales, strict=True)]
        whole = np.concatenate(parts).astype(np.float16)
        assert sum(a is not None and np.array_equal(a, whole) for a in stored.values()) == 1


def test_a_joined_weight_with_another_use_is_left_to_the_builder(tmp_path: Path) -> None:
    emitted = graph(BERT, tmp_path, "padded")
    model = onnx.ModelProto.FromString(emitted.serialize())
    name = "layers.0.q.weight"
    cast = next(node for node in model.graph.node if name in node.input)
    model.graph.node.append(onnx.helper.make_node("Identity", [cast.output[0]], ["seen"]))
    memory = weight_memory("here", model.SerializeToString(), emitted.weights, tmp_path)
    kept = [f"layers.0.{part}.weight" for part in JOINED]
    assert all(np.array_equal(memory.arrays[k], emitted.weights[k].stored().astype(np.float16)) for k in kept)
    assert "layers.1.q.weight" not in memory.arrays


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
    for _ in range(3):
        assert all(np.array_equal(memory.arrays[name], array) for name, array in before.items())
        release(memory.maps)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors"]


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
