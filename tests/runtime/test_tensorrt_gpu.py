"""A small encoder built, loaded and run by TensorRT-RTX on the GPU at hand, against the encoder in fp32."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from tests.compiler.engines.small import BERT, HEAD, graph, options
from tests.runtime.test_tensorrt_executor import bundle_manifest

from bei.compiler.engines import tensorrt as builder
from bei.compiler.lowering.torch_ops import run_torch
from bei.compiler.target import SMS
from bei.gpu import gpus
from bei.manifest import EngineRecord
from bei.runtime.executor import Row
from bei.runtime.executors import tensorrt
from bei.runtime.packing import pad

FOUND = gpus()
SM = 0 if isinstance(FOUND, str) else FOUND[0].sm
pytest.importorskip("tensorrt_rtx")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(SM not in SMS["tensorrt-rtx"], reason="needs a GPU that TensorRT-RTX runs on"),
]


def batch(*lengths: int) -> list[Row]:
    rng = np.random.default_rng(len(lengths))
    return [
        Row(ids=rng.integers(5, 100, n, np.int32), types=rng.integers(0, 2, n, np.int32)) for n in lengths
    ]


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_plan_gives_the_encoders_vectors(layout: Literal["padded", "packed"], tmp_path: Path) -> None:
    emitted, choice = graph(BERT, tmp_path, layout), options(f"tensorrt-rtx-sm{SM}", layout)
    built = builder.build(emitted.serialize(), emitted.weights, choice, tmp_path / "plan")
    record = EngineRecord(
        target=choice.target.name,
        backend="tensorrt-rtx",
        device="cuda",
        layout=layout,
        precision="fp16",
        path="plan",
        inputs=emitted.inputs,
        status="executed",
        tool_versions=built.tool_versions,
        compute_capabilities=choice.target.compute_capabilities,
    )
    assert tensorrt.available(record) is None
    for _ in range(2):  # the second start reads the cache that the first one left
        engine = tensorrt.create(tmp_path, record, bundle_manifest(tmp_path / f"{_}"))
        for rows in (batch(1), batch(64, 3, 7, 20), batch(*range(1, 9)), batch(2, 2)):
            padded = pad(rows, 0, np.int64)
            ids, mask, types = (
                torch.from_numpy(padded[n]) for n in ("input_ids", "attention_mask", "token_type_ids")
            )
            expected = run_torch(BERT, HEAD, emitted.weights, ids, mask, types=types).numpy()
            np.testing.assert_allclose(np.asarray(engine.run(rows)), expected, atol=2e-3)
        engine.close()
