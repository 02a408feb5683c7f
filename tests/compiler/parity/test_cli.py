"""bei-parity from the command line: exit codes, what it prints, and the real model."""

import json
import shutil
from pathlib import Path

import pytest

from bei.compiler.build import compile_bundle
from bei.compiler.options import BuildOptions
from bei.compiler.parity.cli import main, parser
from bei.compiler.parity.report import decode_report
from bei.manifest import MANIFEST_FILE
from bei.runtime.bundle import open_bundle
from tests.compiler.parity.tiny import MINILM


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "tiny.bundle"))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "mine.txt"
    path.write_text("one\ntwo words\na somewhat longer third text\n")
    return path


def test_the_flags() -> None:
    """A new flag is a visible decision."""
    flags = {flag for action in parser()._actions for flag in action.option_strings}
    assert flags == {
        *("-h", "--help", "--checkpoint", "--texts", "--full", "--target", "--json", "--html"),
        *("--runner", "--zoo", "--only", "--weights", "--workers", "--ray"),
    }


def test_pass(bundle: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copies = [tmp_path / "copy.json", tmp_path / "copy.html"]
    assert main([str(bundle), "--texts", str(texts), "--json", str(copies[0]), "--html", str(copies[1])]) == 0
    out, err = capsys.readouterr()
    assert "onnxruntime-cpu  passed" in out
    assert "cosine, worst text" in out
    assert "3 texts (mine.txt)" in out
    assert err == ""
    report = decode_report(copies[0].read_bytes(), "copy")
    assert report.verdict == "passed"
    assert (bundle / "parity.json").read_bytes() == copies[0].read_bytes()
    assert (bundle / "parity.html").read_bytes() == copies[1].read_bytes()
    assert open_bundle(bundle).manifest.parity.verdicts == {"onnxruntime-cpu": "passed"}


def test_fail(
    bundle: Path, texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bei.runtime.executors.onnxruntime import OnnxRuntimeExecutor

    honest = OnnxRuntimeExecutor.run
    monkeypatch.setattr(OnnxRuntimeExecutor, "run", lambda self, rows: honest(self, rows)[::-1])
    assert main([str(bundle), "--texts", str(texts)]) == 1
    out = capsys.readouterr().out
    assert "onnxruntime-cpu  failed" in out
    assert "✗" in out
    assert "passed  fp32 storage in torch" in out  # the precision is not to blame
    assert open_bundle(bundle).manifest.parity.verdicts == {"onnxruntime-cpu": "failed"}


def test_own_checkpoint(bundle: Path, checkpoint: Path, texts: Path) -> None:
    assert main([str(bundle), "--checkpoint", str(checkpoint), "--texts", str(texts)]) == 0


def test_a_torn_certificate_is_replaced(
    bundle: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(bundle), "--texts", str(texts)]) == 0
    (bundle / "parity.json").write_bytes(b"{}")
    assert main([str(bundle), "--texts", str(texts)]) == 0
    assert "the old certificate was damaged" in capsys.readouterr().err
    assert open_bundle(bundle).manifest.parity.verdicts == {"onnxruntime-cpu": "passed"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/none"], "this is no bundle"),
        (["{bundle}", "--texts", "{tmp}/none.txt"], "cannot be read"),
        (["{bundle}", "--texts", "{texts}", "--full"], "--full is about the built-in texts"),
        (["{bundle}", "--texts", "{texts}", "--target", "cuda-sm90"], "no engine for target 'cuda-sm90'"),
        (["{bundle}", "--texts", "{texts}", "--checkpoint", "{tmp}"], "is missing"),
        (["{bundle}", "--texts", "{texts}", "--json", "{tmp}/no/folder.json"], "cannot be written"),
    ],
)
def test_unusable(
    bundle: Path,
    texts: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [argument.format(bundle=bundle, texts=texts, tmp=tmp_path) for argument in arguments]
    assert main(filled) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.count("bei-parity:") >= 1
    assert "Traceback" not in out + err


def test_a_changed_bundle_is_refused(bundle: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bundle / "model.onnx"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    before = (bundle / MANIFEST_FILE).read_bytes()
    assert main([str(bundle), "--texts", str(texts)]) == 2
    assert "model.onnx has changed" in capsys.readouterr().err
    assert (bundle / MANIFEST_FILE).read_bytes() == before


def test_minilm_on_the_built_in_texts(tmp_path: Path) -> None:
    """The real model, whole path against sentence-transformers: what the certificate in a bundle promises."""
    out = tmp_path / "minilm.bundle"
    compile_bundle(BuildOptions(repo=str(MINILM), out=out, targets=("onnxruntime-cpu",)))
    assert main([str(out)]) == 0
    (engine,) = json.loads((out / "parity.json").read_bytes())["engines"]
    values = {measure["name"]: measure["value"] for measure in engine["measures"]}
    assert values["cosine_min"] >= 0.9999999
    assert values["max_abs_error"] <= 1e-5
    assert values["neighbour_overlap"] == 1
    assert values["token_ids_differ"] == 0
    assert values["padding_difference"] <= 1e-5
    assert engine["texts"]["longest"] == 256
