"""Real bundles: the check, the certificate inside them, and what a damaged or foreign one does."""

import hashlib
import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from bei.compiler import mapped
from bei.compiler.build import compile_bundle
from bei.compiler.mapped import Region
from bei.compiler.options import BuildOptions
from bei.compiler.parity import bundles, certificate
from bei.compiler.parity.bundles import (
    Texts,
    builtin_texts,
    check_bundle,
    checkpoint_of,
    require_source,
)
from bei.compiler.parity.certificate import certifier, certify, discard_damaged
from bei.compiler.parity.reference import hugging_face
from bei.compiler.parity.report import ParityReport, decode_report
from bei.compiler.parity.run import expect, not_run
from bei.compiler.parity.rungs import load_encoder, with_rung
from bei.compiler.parity.subject import bundle_engine, tokenize
from bei.compiler.parity.texts import Sample
from bei.errors import BundleError, EngineError, ParityError
from bei.manifest import MANIFEST_FILE, FileRecord, Manifest, Verdict, encode_manifest
from bei.runtime.bundle import Bundle, open_bundle
from bei.runtime.model import load
from bei.runtime.tokenizer import open_tokenizer
from tests.compiler.parity.tiny import classifier, tagger
from tests.compiler.resident import NEEDS_PROC

FEW = Texts(
    source="few.txt",
    samples=(
        *(Sample(kind="user", text=text) for text in ("one", "another text", "word " * 90, "Grüße, 世界 🎉")),
        Sample(kind="user", text="a question", prompt="query"),
    ),
)


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Bundle:
    """A copy of its own."""
    shutil.copytree(built, tmp_path / "tiny.bundle")
    return open_bundle(tmp_path / "tiny.bundle")


@pytest.fixture(scope="module")
def report(built: Path) -> ParityReport:
    bundle = open_bundle(built)
    with checkpoint_of(bundle) as folder:
        return check_bundle(bundle, folder, FEW)


def test_the_engine_of_a_compiled_bundle_passes(report: ParityReport) -> None:
    (engine,) = report.engines
    assert (report.verdict, engine.verdict) == ("passed", "passed")
    assert (engine.value("cosine_min") or 0) > 1 - 1e-9
    assert engine.value("token_ids_differ") == 0
    assert engine.texts is not None
    assert (engine.texts.source, engine.texts.longest) == ("few.txt", 64)
    assert engine.device is not None
    assert engine.device.startswith("cpu")
    assert "onnxruntime" in engine.versions


def test_built_in_texts_use_the_bundles_prompts_and_length(bundle: Bundle) -> None:
    texts = builtin_texts(bundle.manifest)
    assert {sample.prompt for sample in texts.samples} == {None, "query"}  # an empty prompt needs no trial
    assert len(builtin_texts(bundle.manifest, full=True).samples) > 2 * len(texts.samples)


def test_certificate_in_the_bundle(bundle: Bundle, report: ParityReport) -> None:
    with pytest.raises(BundleError, match="parity verdict"):
        load(bundle.path)
    certify(bundle.path, report)
    manifest = open_bundle(bundle.path).manifest  # every hash, the new files' among them
    assert manifest.parity.verdicts == {"onnxruntime-cpu": "passed"}
    assert manifest.parity.file == "parity.json"
    assert {"parity.json", "parity.html"} <= set(manifest.files)
    assert manifest.engine("onnxruntime-cpu").status == "executed"
    summary = manifest.parity.summary["onnxruntime-cpu"]
    assert summary["measures"]["cosine_min"] == report.engines[0].value("cosine_min")
    assert decode_report((bundle.path / "parity.json").read_bytes(), "x") == report
    assert "few.txt" in (bundle.path / "parity.html").read_text()
    assert not [path for path in bundle.path.iterdir() if path.name.startswith(".")]
    with load(bundle.path) as model:
        assert model.encode("hello").shape == (32,)


def test_later_engines_complete_the_certificate(bundle: Bundle, report: ParityReport) -> None:
    certify(bundle.path, report)
    other = msgspec.structs.replace(report, engines=(not_run("onnxruntime-cpu", "fp32", "not today"),))
    manifest = certify(bundle.path, other)
    assert manifest.parity.verdicts == {"onnxruntime-cpu": "passed"}
    failed = msgspec.structs.replace(report.engines[0], verdict="failed")
    manifest = certify(bundle.path, msgspec.structs.replace(report, engines=(failed,)))
    assert manifest.parity.verdicts == {"onnxruntime-cpu": "failed"}
    with pytest.raises(BundleError, match="parity verdict is 'failed'"):
        load(bundle.path)


def test_one_plan_collects_the_devices_it_passed_on(bundle: Bundle, report: ParityReport) -> None:
    def after(device: str, verdict: Verdict) -> tuple[str, ...]:
        engine = msgspec.structs.replace(report.engines[0], device_class=device, verdict=verdict)
        manifest = certify(bundle.path, msgspec.structs.replace(report, engines=(engine,)))
        return manifest.parity.classes.get("onnxruntime-cpu", ())

    assert report.engines[0].device_class == "cpu"
    assert after("sm89", "passed") == ("sm89",)
    assert after("sm86", "passed") == ("sm86", "sm89")
    assert after("sm86", "failed") == ("sm89",)
    certify(bundle.path, msgspec.structs.replace(report, engines=(not_run("onnxruntime-cpu", "fp32", "-"),)))
    assert open_bundle(bundle.path).manifest.parity.classes == {"onnxruntime-cpu": ("sm89",)}


def test_an_edited_certificate_is_refused_and_can_be_replaced(bundle: Bundle, report: ParityReport) -> None:
    certify(bundle.path, report)
    page = bundle.path / "parity.html"
    page.write_text(page.read_text().replace("passed", "PASSED"))
    with pytest.raises(BundleError, match=r"parity\.html has changed"):
        open_bundle(bundle.path)
    assert discard_damaged(bundle.path)
    assert open_bundle(bundle.path).manifest.parity.verdicts == {"onnxruntime-cpu": "not run"}
    assert not discard_damaged(bundle.path)
    certify(bundle.path, report)
    assert open_bundle(bundle.path).manifest.parity.verdicts == {"onnxruntime-cpu": "passed"}


def test_a_certificate_of_another_version_is_replaced(bundle: Bundle, report: ParityReport) -> None:
    older = msgspec.structs.replace(report, report_version=0)
    certify(bundle.path, older)
    certify(bundle.path, report)
    assert decode_report((bundle.path / "parity.json").read_bytes(), "x") == report


def test_a_full_disk_leaves_the_bundle_as_it_was(
    bundle: Bundle, report: ParityReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = (bundle.path / MANIFEST_FILE).read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match=r"cannot be written .No space left"):
        certify(bundle.path, report)
    assert (bundle.path / MANIFEST_FILE).read_bytes() == before
    assert not [path for path in bundle.path.iterdir() if path.name.startswith((".", "parity"))]


def test_checkpoint_inside_the_bundle_is_the_one_it_came_from(bundle: Bundle, checkpoint: Path) -> None:
    with checkpoint_of(bundle) as folder:
        for name in bundle.manifest.source.files:
            assert (folder / name).read_bytes() == (checkpoint / name).read_bytes()
        require_source(folder, bundle.manifest)
    assert not folder.exists()
    require_source(checkpoint, bundle.manifest)


def test_another_checkpoint_is_refused(bundle: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5}))
    with pytest.raises(ParityError, match=r"config\.json is not the file that .* was made from"):
        require_source(other, bundle.manifest)
    (other / "config.json").unlink()
    with pytest.raises(ParityError, match=r"config\.json is missing"):
        require_source(other, bundle.manifest)


def with_other_weights(bundle: Bundle) -> Bundle:
    """The bundle with one weight tensor scaled, and a manifest that says so."""
    path = bundle.path / "model.safetensors"
    data = bytearray(path.read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    start, end = header["encoder.layer.1.output.dense.weight"]["data_offsets"]
    base = 8 + int.from_bytes(data[:8], "little")
    tensor = np.frombuffer(data, np.float32, (end - start) // 4, base + start)
    data[base + start : base + end] = (tensor * np.float32(1.05)).tobytes()
    path.write_bytes(data)
    record = FileRecord(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    return rewritten(bundle, files={**bundle.manifest.files, "model.safetensors": record})


def rewritten(bundle: Bundle, **changes: Any) -> Bundle:
    manifest: Manifest = msgspec.structs.replace(bundle.manifest, **changes)
    (bundle.path / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
    return open_bundle(bundle.path)


@NEEDS_PROC
def test_weights_of_the_reference_do_not_stay_in_memory(
    bundle: Bundle, checkpoint: Path, report: ParityReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[int] = []

    def watched(files: Collection[Path], own: frozenset[Region]) -> None:
        mapped.release_regions(files, own)
        given_back.append(len(own))

    monkeypatch.setattr(mapped, "_KEPT", -(1 << 40))  # however little it is
    monkeypatch.setattr(bundles, "release_regions", watched)
    found = check_bundle(bundle, checkpoint, FEW)
    assert given_back[-1] > 0  # the reference maps its weights
    assert found.engines[0].measures == report.engines[0].measures


def test_weights_that_are_a_little_off_fail_and_the_rung_below_says_where(
    bundle: Bundle, checkpoint: Path
) -> None:
    """The engine computes with other weights than the checkpoint: it fails, while torch on the checkpoint passes."""
    report = check_bundle(with_other_weights(bundle), checkpoint, FEW)
    (engine,) = report.engines
    assert report.verdict == "failed"
    assert (engine.value("cosine_min") or 1) < 0.9999
    (rung,) = engine.rungs
    assert rung.verdict == "passed"
    assert engine.drift is not None
    assert engine.drift.first is None


def test_an_engine_that_cannot_run_here_is_proven_up_to_its_rung(bundle: Bundle, checkpoint: Path) -> None:
    record = msgspec.structs.replace(
        bundle.manifest.engines[0], target="cuda-sm90", device="cuda", precision="fp16"
    )
    bundle = rewritten(bundle, engines=(record,), fallback=("cuda-sm90",))
    report = check_bundle(bundle, checkpoint, FEW)
    (engine,) = report.engines
    assert (report.verdict, engine.verdict) == ("not run", "not run")
    assert engine.reason is not None
    assert engine.reason.startswith("built, not executed: ")
    (rung,) = engine.rungs
    assert rung.name.startswith("fp16 storage in torch")
    assert rung.verdict == "passed"
    assert engine.drift is not None
    assert [row.name for row in engine.drift.rows] == ["embed", "layers.0", "output"]
    errors = [row.relative_error or 0 for row in engine.drift.rows]
    assert 1e-5 < errors[0] < errors[-1] < 2e-2
    manifest = certify(bundle.path, report)
    assert manifest.engine("cuda-sm90").status == "built, not executed"
    assert manifest.parity.verdicts == {"cuda-sm90": "not run"}


def test_drift_names_the_layer_whose_weights_differ(
    bundle: Bundle, checkpoint: Path, report: ParityReport
) -> None:
    """Torch with the altered weights against the true checkpoint: the second layer's MLP is where it begins."""
    altered = with_other_weights(bundle)
    expected = expect(hugging_face(checkpoint, "embed", max_length=64), FEW.samples, "few")
    rows = tokenize(altered.manifest, open_tokenizer(altered), FEW.samples)
    with checkpoint_of(altered) as folder:
        encoder = load_encoder(folder, "fp32")
        found = with_rung(report.engines[0], altered.manifest.engines[0], encoder, rows, expected)
    assert found.drift is not None
    assert found.drift.first == "output"
    assert (found.drift.rows[1].relative_error or 1) < 1e-5
    assert found.rungs[0].verdict == "failed"


def test_an_engine_that_gives_nan_is_counted_not_thrown(
    bundle: Bundle, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bei.runtime.executors.onnxruntime import OnnxRuntimeExecutor

    honest = OnnxRuntimeExecutor.run

    def poisoned(self: OnnxRuntimeExecutor, rows: list[Any]) -> Any:
        out = np.asarray(honest(self, rows)).copy()
        for i, row in enumerate(rows):
            if row.ids.size == 64:
                out[i] = np.nan
        return out

    monkeypatch.setattr(OnnxRuntimeExecutor, "run", poisoned)
    (engine,) = check_bundle(bundle, checkpoint, FEW).engines
    assert engine.verdict == "failed"
    assert (engine.value("non_finite") or 0) >= 1
    assert engine.worst[0].distance is None
    assert engine.worst[0].tokens == 64


def test_an_engine_that_breaks_fails_with_its_message(
    bundle: Bundle, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bei.runtime.executors.onnxruntime import OnnxRuntimeExecutor

    def broken(self: OnnxRuntimeExecutor, rows: list[Any]) -> Any:
        raise EngineError("onnxruntime-cpu: out of memory")

    monkeypatch.setattr(OnnxRuntimeExecutor, "run", broken)
    (engine,) = check_bundle(bundle, checkpoint, FEW).engines
    assert (engine.verdict, engine.reason) == ("failed", "onnxruntime-cpu: out of memory")


def test_unknown_targets_and_unfit_texts(bundle: Bundle, checkpoint: Path) -> None:
    with pytest.raises(BundleError, match="no engine for target 'cuda'"):
        check_bundle(bundle, checkpoint, FEW, targets=["cuda"])
    pairs = Texts(source="pairs.csv", samples=(Sample(kind="user", text="a", pair="b"),))
    with pytest.raises(ParityError, match=r"pairs\.csv: text 1 is a pair"):
        check_bundle(bundle, checkpoint, pairs)


def test_bei_compile_certifies_what_it_builds(checkpoint: Path, tmp_path: Path) -> None:
    options = BuildOptions(repo=str(checkpoint), out=tmp_path / "x.bundle", targets=("onnxruntime-cpu",))
    _, manifest = compile_bundle(options, certify=certifier())
    assert manifest.parity.verdicts == {"onnxruntime-cpu": "passed"}
    assert open_bundle(tmp_path / "x.bundle").manifest == manifest


@pytest.mark.parametrize(
    ("task", "labels"), [("rerank", 1), ("classify", 3), ("classify", 2), ("token-classify", 0)]
)
def test_every_task_end_to_end(task: str, labels: int, tmp_path: Path) -> None:
    """A tiny checkpoint with that head, compiled, run, and compared with transformers on the built-in texts."""
    folder = (
        tagger(tmp_path / "model") if task == "token-classify" else classifier(tmp_path / "model", labels)
    )
    options = BuildOptions(repo=str(folder), out=tmp_path / "x.bundle", targets=("onnxruntime-cpu",))
    _, manifest = compile_bundle(options, certify=certifier())
    assert manifest.head.task == task
    assert manifest.parity.verdicts == {"onnxruntime-cpu": "passed"}
    (engine,) = decode_report((tmp_path / "x.bundle/parity.json").read_bytes(), "x").engines
    assert all(measure.passed for measure in engine.measures if measure.threshold is not None)


def test_without_a_reference_the_bundle_is_kept_and_says_why(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> ParityReport:
        raise ParityError("transformers is no reference for this checkpoint")

    monkeypatch.setattr(certificate, "check_bundle", refuse)
    options = BuildOptions(repo=str(checkpoint), out=tmp_path / "x.bundle", targets=("onnxruntime-cpu",))
    _, manifest = compile_bundle(options, certify=certifier())
    assert manifest.parity.verdicts == {"onnxruntime-cpu": "not run"}
    assert "no reference" in manifest.parity.summary["onnxruntime-cpu"]["reason"]
    with pytest.raises(BundleError, match="parity verdict is 'not run'"):
        load(tmp_path / "x.bundle")


def test_certifier_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "find_spec", lambda name: None)
    with pytest.raises(ParityError, match=r"pip install 'bei\[parity\]', or pass --no-parity"):
        certifier()


def test_bundle_engine_closes_its_model(bundle: Bundle) -> None:
    with bundle_engine(bundle, bundle.manifest.engines[0]) as engine:
        model = engine.model
    with pytest.raises(EngineError, match="closed"):
        model.encode("x")
