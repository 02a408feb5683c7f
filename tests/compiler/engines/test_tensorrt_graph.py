"""The graph TensorRT gets computes what the encoder defines: FP16 storage, FP32 accumulation, on ONNX's own evaluator.

ONNX Runtime cannot run it (its Attention does not spread a mask over queries), so the reference evaluator does.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from bei.adapters.config import DynamicNtk, EncoderConfig
from bei.compiler.lowering.emit import EmittedGraph, emit
from bei.compiler.lowering.policy import TENSORRT
from bei.compiler.lowering.torch_ops import run_torch
from bei.compiler.precision.policy import Policy
from bei.runtime.executor import Row
from bei.runtime.packing import pack, pad
from tests.compiler.engines.small import BERT, HEAD, WINDOWED, graph, random_weights

LENGTHS = (1, 19, 7, 12)


def turned(cfg: EncoderConfig, **changes: Any) -> EncoderConfig:
    """With other rotary positions in every layer."""
    layers = tuple(
        replace(l, rope=None if l.rope is None else replace(l.rope, **changes)) for l in cfg.layers
    )
    return replace(cfg, layers=layers)


ENCODERS = {
    "bert": BERT,
    "windowed": WINDOWED,
    "alibi": replace(BERT, bias="alibi"),
    "causal": replace(WINDOWED, causal=True),
    "causal with a bias": replace(BERT, bias="alibi", causal=True),
    "stretched": turned(WINDOWED, scaling=DynamicNtk(factor=2.0, trained_positions=8)),
    "turned in pairs": turned(WINDOWED, dim=32, interleaved=True),
}


def rows() -> list[Row]:
    rng = np.random.default_rng(1)
    return [
        Row(ids=rng.integers(5, 100, n, np.int32), types=rng.integers(0, 2, n, np.int32)) for n in LENGTHS
    ]


def evaluate(emitted: EmittedGraph, feeds: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    model = ir.external_data.load_to_model(emitted.model)
    evaluator = ReferenceEvaluator(ir.to_proto(model))
    (out,) = evaluator.run(None, {name: feeds[name] for name in emitted.inputs})
    return np.asarray(out)


def test_only_a_post_norms_stream_is_fp16(tmp_path: Path) -> None:
    """Sums and norms are fp32 in both; from a post-norm an FP16 value goes on, a pre-norm's stream goes on as the sum."""

    def readers(cfg: EncoderConfig, *kinds: str) -> list[list[ir.Node]]:
        nodes = [node for node in graph(cfg, tmp_path, "padded").model.graph if node.op_type in kinds]
        outputs = [node.outputs[0] for node in nodes if node.outputs[0].dtype == ir.DataType.FLOAT]
        return [[use.node for use in output.uses()] for output in outputs]

    norms = readers(BERT, "LayerNormalization")
    assert len(norms) == 1 + 2 * len(BERT.layers)
    assert {(len(n), n[0].op_type, n[0].outputs[0].dtype) for n in norms} == {
        (1, "Cast", ir.DataType.FLOAT16)
    }
    sums = [{node.op_type for node in n} for n in readers(WINDOWED, "Add")]
    assert sums.count({"RMSNormalization", "Add"}) == 2 * len(WINDOWED.layers) - 1


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("cfg", ENCODERS.values(), ids=ENCODERS)
def test_the_graph_is_the_encoder(
    cfg: EncoderConfig, layout: Literal["padded", "packed"], tmp_path: Path
) -> None:
    emitted = graph(cfg, tmp_path, layout)
    padded = pad(rows(), 0, np.int32)
    ids, types, mask = (
        torch.from_numpy(padded[n]).long() for n in ("input_ids", "token_type_ids", "attention_mask")
    )
    expected = run_torch(cfg, HEAD, emitted.weights, ids, mask, types=types).numpy()
    found = evaluate(emitted, padded if layout == "padded" else pack(rows()))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-3)  # FP16 keeps 11 bits; unit vectors of 64 to 128


def test_scaled_queries_and_keys_are_normed_as_the_others(tmp_path: Path) -> None:
    """Range folding gives the norm of each an eps of its own."""
    weights = random_weights(WINDOWED, tmp_path)
    padded = pad(rows(), 0, np.int32)
    policy = Policy(scales={"layers.0.q": 2.0**-6, "layers.1.k": 2.0**-4, "layers.1.v": 0.5})
    plain, folded = (
        evaluate(emit(WINDOWED, HEAD, weights, TENSORRT, precision), padded)
        for precision in (Policy(), policy)
    )
    np.testing.assert_allclose(folded, plain, atol=1e-3)


@pytest.mark.parametrize("without", [(), ("k",), ("q", "k", "v")])
def test_linears_of_one_input_are_one_product(without: tuple[str, ...], tmp_path: Path) -> None:
    """With biases in all of them, in some, in none: the same values as of products apart."""
    missing = {f"layers.{i}.{name}.bias" for i in range(2) for name in without}
    weights = {name: w for name, w in random_weights(BERT, tmp_path).items() if name not in missing}
    joined, apart = (emit(BERT, HEAD, weights, replace(TENSORRT, joined=one)) for one in (True, False))
    products = [[n.op_type for n in emitted.model.graph].count("MatMul") for emitted in (joined, apart)]
    assert products == [4 * 2, 6 * 2]
    padded = pad(rows(), 0, np.int32)
    np.testing.assert_allclose(evaluate(joined, padded), evaluate(apart, padded), atol=1e-3)


def test_a_causal_row_needs_no_mask(tmp_path: Path) -> None:
    """[B, 1, L, L] is memory, and TensorRT would look at every key: is_causal and a window of positions bound them."""
    nodes = list(graph(ENCODERS["causal"], tmp_path, "padded").model.graph)
    whole, window = (node for node in nodes if node.op_type == "Attention")
    assert whole.attributes.get_int("is_causal") == 1
    assert len(whole.inputs) == 3
    assert window.attributes.get_int("is_causal", 0) == 0
    mask, seen = [window.inputs[3]], set()
    while mask:  # everything the mask is made of
        value = mask.pop()
        node = None if value is None else value.producer()
        if node is not None:
            seen.add(node.op_type)
            mask.extend(node.inputs)
    assert seen == {"And", "GreaterOrEqual", "LessOrEqual", "Sub", "Unsqueeze", "Range", "Squeeze", "Shape"}
