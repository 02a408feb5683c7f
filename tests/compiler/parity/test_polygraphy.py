"""The cross-check by Polygraphy: real for ONNX Runtime, up to the driver for TensorRT."""

import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from bei.compiler.build import compile_bundle
from bei.compiler.options import BuildOptions
from bei.compiler.parity import polygraphy_runner
from bei.compiler.parity.bundles import check_bundle
from bei.compiler.parity.cli import main
from bei.compiler.parity.polygraphy_runner import PolygraphyExecutor, available, create
from bei.compiler.parity.report import decode_report
from bei.errors import EngineError
from bei.manifest import MANIFEST_FILE, EngineRecord, Profile
from bei.runtime.bundle import Bundle, open_bundle
from bei.runtime.executor import Row
from bei.runtime.executors import registry
from tests.compiler.parity.test_bundles import FEW, with_other_weights
from tests.compiler.parity.tiny import tagger
from tests.runtime.tensorrt_double import needs_rtx, no_gpu, record, rows

polygraphy = pytest.importorskip("polygraphy")


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Bundle:
    shutil.copytree(built, tmp_path / "tiny.bundle")
    return open_bundle(tmp_path / "tiny.bundle")


def test_an_engine_passes_and_the_certificate_stays_as_it_is(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, copy = tmp_path / "mine.txt", tmp_path / "copy.json"
    texts.write_text("one\ntwo words\na somewhat longer third text\n")
    before = (bundle.path / MANIFEST_FILE).read_bytes()
    arguments = [str(bundle.path), "--runner", "polygraphy", "--texts", str(texts), "--json", str(copy)]
    assert main(arguments) == 0
    assert "onnxruntime-cpu  passed" in capsys.readouterr().out
    (engine,) = decode_report(copy.read_bytes(), "copy").engines
    assert engine.versions["polygraphy"] == polygraphy.__version__
    assert (engine.value("cosine_min") or 0) > 1 - 1e-9
    assert (bundle.path / MANIFEST_FILE).read_bytes() == before
    assert not (bundle.path / "parity.json").exists()


def test_wrong_weights_fail_there_too(bundle: Bundle, checkpoint: Path) -> None:
    report = check_bundle(with_other_weights(bundle), checkpoint, FEW, runner=polygraphy_runner)
    assert report.verdict == "failed"


def test_a_fault_of_our_executor_is_told_from_one_of_the_engine(
    bundle: Bundle, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bei.runtime.executors.onnxruntime import OnnxRuntimeExecutor

    honest = OnnxRuntimeExecutor.run
    monkeypatch.setattr(OnnxRuntimeExecutor, "run", lambda self, rows: honest(self, rows)[::-1])
    assert check_bundle(bundle, checkpoint, FEW).verdict == "failed"
    assert check_bundle(bundle, checkpoint, FEW, runner=polygraphy_runner).verdict == "passed"


def test_token_labels_are_cut_to_the_rows_as_ours_are(tmp_path: Path) -> None:
    folder = tagger(tmp_path / "model")
    path, manifest = compile_bundle(
        BuildOptions(repo=str(folder), out=tmp_path / "x.bundle", targets=("onnxruntime-cpu",))
    )
    batch = [Row(ids=np.arange(5, 5 + n, dtype=np.int32), types=np.zeros(n, np.int32)) for n in (3, 7)]
    made = [of.create(path, manifest.engines[0], manifest, threads=1) for of in (registry, polygraphy_runner)]
    (ours, theirs) = [list(engine.run(batch)) for engine in made]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    for engine in made:
        engine.close()


def test_engines_without_a_runner_are_refused(bundle: Bundle) -> None:
    cuda = record(backend="cuda")
    assert available(cuda) == "polygraphy has no runner for cuda engines on cuda"
    with pytest.raises(EngineError, match=r"sm89: polygraphy cannot run it here: polygraphy has no runner"):
        create(bundle.path, cuda, bundle.manifest)


def test_without_polygraphy_the_reason_is_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polygraphy_runner, "find_spec", lambda name: None)
    assert available(record()) == 'polygraphy is not installed (pip install "bei[polygraphy]")'


@no_gpu
@needs_rtx
def test_a_plan_needs_the_driver(bundle: Bundle) -> None:
    assert available(record()) == registry.available(record())
    assert "no CUDA driver was found" in str(available(record()))


@needs_rtx
def test_a_plan_that_the_library_cannot_load(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both libraries in turn: Polygraphy takes the first and no other."""
    monkeypatch.setattr(polygraphy_runner, "available", lambda record: None)
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "plan").write_bytes(b"not a plan" * 100)
    for name in [name for name in sys.modules if name.split(".")[0] == "polygraphy"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(EngineError, match="tensorrt-rtx cannot load engines/plan"):
        create(tmp_path, record(), bundle.manifest)
    with pytest.raises(EngineError, match="one TensorRT library a process, and it is the other one already"):
        create(tmp_path, record(backend="tensorrt"), bundle.manifest)


class Runner:
    """A TrtRunner whose one output buffer is used again, as the real one's is."""

    def __init__(self) -> None:
        self.profiles: list[int] = []
        self.fed: dict[str, npt.NDArray[Any]] = {}
        self.buffer = np.zeros((8, 3), np.float32)

    def set_profile(self, index: int) -> None:
        self.profiles.append(index)

    def infer(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.float32]]:
        self.fed = feeds
        sums = np.array([row.sum() for row in feeds["input_ids"]], np.float32)
        self.buffer[: sums.size] = sums[:, None]
        return {"sentence_embedding": self.buffer[: sums.size]}


def plan_record(**changes: Any) -> EngineRecord:
    sizes = ((4, 8), (2, 32))
    profiles = tuple(Profile(max_batch=b, max_length=n, max_tokens=b * n) for b, n in sizes)
    return msgspec.structs.replace(
        record(inputs=("input_ids", "attention_mask")), profiles=profiles, **changes
    )


def test_a_plan_gets_int32_and_the_profile_that_takes_the_batch(bundle: Bundle) -> None:
    runner = Runner()
    engine = PolygraphyExecutor(runner, plan_record(), bundle.manifest)
    first = engine.run(rows(8, 3, 1))
    kept = np.array(first)
    engine.run(rows(32, 20))
    assert runner.profiles == [0, 1]
    assert {array.dtype for array in runner.fed.values()} == {np.dtype(np.int32)}
    assert list(runner.fed) == ["input_ids", "attention_mask"]
    np.testing.assert_array_equal(first, kept)
    with pytest.raises(EngineError, match="3 rows of 9 tokens are larger than the plan was built for"):
        engine.run(rows(9, 9, 9))


def test_a_packed_plan_gets_packed_rows(bundle: Bundle) -> None:
    runner = Runner()
    packed = plan_record(layout="packed")
    inputs = ("input_ids", "pad_index", "unpad_index", "attention_mask")
    engine = PolygraphyExecutor(runner, msgspec.structs.replace(packed, inputs=inputs), bundle.manifest)
    engine.run(rows(3, 5))
    assert {name: array.shape for name, array in runner.fed.items()} == {
        "input_ids": (8,),
        "pad_index": (2, 5),
        "unpad_index": (8,),
        "attention_mask": (2, 5),
    }
