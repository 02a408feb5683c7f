"""The ONNX Runtime executor: padding never leaks, errors are ours, the manifest is believed only when true."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.runtime.tiny import CLS, SEP, engine, expected, write_bundle

from bei.errors import EngineError
from bei.manifest import EngineRecord
from bei.runtime.bundle import Bundle, open_bundle
from bei.runtime.cpu import usable_cpus
from bei.runtime.executor import Row
from bei.runtime.executors import onnxruntime, registry


def row(*ids: int, prompt_tokens: int = 0) -> Row:
    return Row(ids=np.array(ids, np.int32), types=np.zeros(len(ids), np.int32), prompt_tokens=prompt_tokens)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(write_bundle(tmp_path_factory.mktemp("executor") / "b"))


def test_a_row_does_not_depend_on_its_neighbours(bundle: Bundle) -> None:
    executor = registry.create(bundle.path, bundle.manifest.engines[0], bundle.manifest, threads=1)
    rows = [row(CLS, 5, SEP), row(CLS, *range(5, 15), SEP), row(7)]
    together = np.asarray(executor.run(rows))
    for index, one in enumerate(rows):
        np.testing.assert_allclose(together[index], np.asarray(executor.run([one]))[0], atol=1e-6)
        np.testing.assert_allclose(together[index], expected(one.ids.tolist()), atol=1e-6)
    assert executor.describe()["threads"] == 1


def test_a_failure_of_the_library_is_an_engine_error(bundle: Bundle) -> None:
    executor = registry.create(bundle.path, bundle.manifest.engines[0], bundle.manifest)
    with pytest.raises(EngineError, match="onnxruntime-cpu: onnxruntime failed"):
        executor.run([row(10**6)])
    executor.close()
    with pytest.raises(EngineError, match="closed"):
        executor.run([row(5)])


def test_a_graph_that_differs_from_the_manifest_is_refused(bundle: Bundle) -> None:
    record = engine(inputs=("input_ids", "attention_mask"))
    with pytest.raises(EngineError, match=r"model\.onnx takes .*token_type_ids.*Rebuild"):
        registry.create(bundle.path, record, bundle.manifest)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (engine(layout="packed"), "packed layout"),
    ],
)
def test_what_cannot_run_says_why(bundle: Bundle, record: EngineRecord, reason: str) -> None:
    assert reason in (registry.available(record) or "")
    with pytest.raises(EngineError, match=reason):
        registry.create(bundle.path, record, bundle.manifest)


def test_a_missing_library_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "find_spec", lambda name: None)
    assert registry.available(engine()) == "onnxruntime is not installed (pip install onnxruntime)"


def test_a_backend_without_an_executor_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.MODULES, "cuda", "bei.runtime.executors.nowhere")
    record = msgspec.structs.replace(engine(), backend="cuda")
    assert registry.available(record) == "this version of bei has no executor for cuda"


@pytest.mark.parametrize(("quota", "cpus"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", None)])
def test_a_containers_cpu_quota_counts(tmp_path: Path, quota: str, cpus: int | None) -> None:
    unlimited = usable_cpus(tmp_path / "none")
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cpus(tmp_path / "cpu.max") == (unlimited if cpus is None else min(cpus, unlimited))
