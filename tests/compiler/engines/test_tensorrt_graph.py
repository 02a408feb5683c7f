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

from bei.adapters.config import EncoderConfig
from bei.compiler.lowering.emit import EmittedGraph
from bei.compiler.lowering.torch_ops import run_torch
from bei.runtime.executor import Row
from bei.runtime.packing import pack, pad
from tests.compiler.engines.small import BERT, HEAD, WINDOWED, graph

LENGTHS = (1, 19, 7, 12)


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
@pytest.mark.parametrize(
    "cfg", [BERT, WINDOWED, replace(BERT, bias="alibi")], ids=["bert", "windowed", "alibi"]
)
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
