"""A small encoder built, loaded and run by TensorRT or TensorRT-RTX on the GPU at hand, against the encoder in fp32."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from tests.compiler.engines.small import BERT, HEAD, graph, options
from tests.runtime.tensorrt_double import bundle_manifest

from bei.compiler.engines import tensorrt as builder
from bei.compiler.lowering.torch_ops import run_torch
from bei.compiler.parity import polygraphy_runner
from bei.compiler.target import SMS
from bei.gpu import gpus
from bei.manifest import EngineRecord
from bei.runtime.executor import Row
from bei.runtime.executors import tensorrt
from bei.runtime.packing import pad
from bei.runtime.tensorrt.lanes import GRAPH_AFTER

FOUND = gpus()
SM = 0 if isinstance(FOUND, str) else FOUND[0].sm
Backend = Literal["tensorrt", "tensorrt-rtx"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(isinstance(FOUND, str), reason="needs an NVIDIA GPU"),
]


def batch(*lengths: int) -> list[Row]:
    rng = np.random.default_rng(len(lengths))
    return [
        Row(ids=rng.integers(5, 100, n, np.int32), types=rng.integers(0, 2, n, np.int32)) for n in lengths
    ]


def compiled(backend: Backend, layout: Literal["padded", "packed"], folder: Path) -> EngineRecord:
    """The record of a plan built for this GPU; skips where the library is not here or not for it."""
    if SM not in SMS[backend] or (reason := builder.available(backend)) is not None:
        pytest.skip(f"{backend}: {reason if SM in SMS[backend] else f'not for SM{SM}'}")
    emitted, choice = graph(BERT, folder, layout), options(f"{backend}-sm{SM}", layout)
    built = builder.build(emitted.serialize(), emitted.weights, choice, folder / "plan")
    assert built.evidence["fused_attention"] == built.evidence["attention_layers"]
    return EngineRecord(
        target=choice.target.name,
        backend=backend,
        device="cuda",
        layout=layout,
        precision="fp16",
        path="plan",
        inputs=emitted.inputs,
        status="executed",
        tool_versions=built.tool_versions,
        compute_capabilities=choice.target.compute_capabilities,
        profiles=built.profiles,
    )


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_plan_gives_the_encoders_vectors(
    backend: Backend, layout: Literal["padded", "packed"], tmp_path: Path
) -> None:
    record = compiled(backend, layout, tmp_path)
    weights = graph(BERT, tmp_path, layout).weights
    assert tensorrt.available(record) is None
    for start in range(2):  # the second start reads the cache that the first one left
        engine = tensorrt.create(tmp_path, record, bundle_manifest(tmp_path / str(start)))
        again = [batch(9, 30)] * (GRAPH_AFTER + 2)  # from a CUDA graph in the end
        for rows in (batch(1), batch(64, 3, 7, 20), batch(*range(1, 9)), batch(2, 2), *again, batch(40)):
            padded = pad(rows, 0, np.int64)
            ids, mask, types = (
                torch.from_numpy(padded[n]) for n in ("input_ids", "attention_mask", "token_type_ids")
            )
            expected = run_torch(BERT, HEAD, weights, ids, mask, types=types).numpy()
            np.testing.assert_allclose(np.asarray(engine.run(rows)), expected, atol=2e-3)
        said = engine.describe()
        assert said["cuda_graphs"] == ("library" if backend == "tensorrt-rtx" else "1"), said
        engine.close()
    assert (tmp_path.with_name(f"{tmp_path.name}.cache").exists()) == (backend == "tensorrt-rtx")


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_polygraphys_runner_gives_the_same(layout: Literal["padded", "packed"], tmp_path: Path) -> None:
    pytest.importorskip("polygraphy")
    backend: Backend = "tensorrt" if builder.available("tensorrt") is None else "tensorrt-rtx"
    record, manifest = compiled(backend, layout, tmp_path), bundle_manifest(tmp_path / "bundle")
    ours, theirs = (of.create(tmp_path, record, manifest) for of in (tensorrt, polygraphy_runner))
    for rows in (batch(1), batch(64, 3, 7, 20), batch(*range(1, 9))):
        np.testing.assert_allclose(np.asarray(ours.run(rows)), np.asarray(theirs.run(rows)), atol=1e-3)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_two_engines_at_once_do_not_disturb_each_other(backend: Backend, tmp_path: Path) -> None:
    record = compiled(backend, "padded", tmp_path)
    first, second = (
        tensorrt.create(tmp_path, record, bundle_manifest(tmp_path / name)) for name in ("a", "b")
    )
    alone = np.asarray(first.run(batch(20, 5)))
    second.run(batch(64, 64))
    np.testing.assert_array_equal(np.asarray(first.run(batch(20, 5))), alone)
    first.close()
    np.testing.assert_allclose(np.asarray(second.run(batch(20, 5))), alone, atol=1e-3)
    second.close()
