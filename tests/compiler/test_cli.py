"""bei-compile as its users meet it: exit codes, one message a failure, nothing left behind."""

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bei
from bei.compiler.cli import main
from bei.compiler.lowering.attention import attention
from bei.manifest import MANIFEST_FILE
from tests.compiler.checkpoint import tiny

CPU = ("--target", "onnxruntime-cpu", "--no-parity")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny.write(tmp_path / "checkpoint", tiny.files())


def left_behind(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if out.name in path.name)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run, expect exit 2 and exactly one message on standard error."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("bei-compile: ")
    assert "Traceback" not in captured.err
    return captured.err


def test_a_bundle_from_a_folder(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tiny.bundle"
    assert main(["--repo", str(checkpoint), "--out", str(out), *CPU, "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert captured.err == ""
    assert result["bundle"] == str(out)
    assert result["parity"]["verdicts"] == {"onnxruntime-cpu": "not run"}
    assert result["engines"][0]["status"] == "built, not executed"
    assert (out / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    with bei.load(out, allow_unverified=True) as model:
        vectors = model.encode(["hello world", "a b c", ""])
    assert vectors.shape == (3, 8)
    assert np.isfinite(vectors).all()
    assert left_behind(out) == ["tiny.bundle"]


def test_the_same_checkpoint_gives_the_same_bundle(checkpoint: Path, tmp_path: Path) -> None:
    outs = [tmp_path / place / "tiny.bundle" for place in ("one", "two")]
    for out in outs:
        out.parent.mkdir()
        assert main(["--repo", str(checkpoint), "--out", str(out), *CPU]) == 0
    one, two = ((out / MANIFEST_FILE).read_bytes() for out in outs)
    assert one == two


def test_with_parity_the_certificate_decides(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.bundle"
    assert main(["--repo", str(checkpoint), "--out", str(out), "--target", "onnxruntime-cpu"]) == 0
    with bei.load(out) as model:
        assert model.manifest.parity.verdicts == {"onnxruntime-cpu": "passed"}
        assert model.manifest.engine("onnxruntime-cpu").status == "executed"
    assert (out / "parity.html").is_file()


def test_a_failed_gate_is_exit_1_and_the_bundle_is_kept_but_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong scale stands in for a wrong lowering."""

    def wrong(*parts: Any) -> Any:
        right: Any = attention
        return right(*parts[:-1], replace(parts[-1], scale=1.5 * parts[-1].scale))

    monkeypatch.setattr("bei.compiler.lowering.onnx_ops.attention", wrong)
    out = tmp_path / "tiny.bundle"
    assert main(["--repo", str(checkpoint), "--out", str(out), "--target", "onnxruntime-cpu"]) == 1
    with pytest.raises(bei.errors.BundleError, match="parity verdict is 'failed'"):
        bei.load(out)


def test_limits(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tiny.bundle"
    arguments = ["--repo", str(checkpoint), "--out", str(out), *CPU]
    assert main([*arguments, "--max-length", "9", "--max-batch", "3", "--max-batch-tokens", "20"]) == 0
    capsys.readouterr()
    with bei.load(out, allow_unverified=True) as model:
        limits = model.manifest.limits
        assert (limits.max_length, limits.max_batch, limits.max_batch_tokens) == (9, 3, 20)
    assert "more than the checkpoint serves (24 tokens)" in refused(capsys, *arguments, "--max-length", 25)


BROKEN: Mapping[str, tuple[dict[str, Any], str]] = {
    "unknown architecture": ({"config": {"model_type": "berd"}}, "Did you mean 'bert'?"),
    "remote code": ({"config": {"auto_map": {"AutoModel": "modeling.X"}}}, "never executed"),
    "unsupported fact": (
        {"config": {"position_embedding_type": "relative_key"}, "weights": tiny.tensors()},
        "relative_key",
    ),
    "missing fact": ({"config": {"hidden_size": None}, "weights": tiny.tensors()}, "hidden_size"),
    "no weights": ({"more": {"model.safetensors": None}}, "no weights"),
    "no tokenizer": ({"more": {"tokenizer.json": None}}, "tokenizer.json"),
    "truncated weights": (
        {"more": {"model.safetensors": b"\x08\x00\x00\x00\x00\x00\x00\x00{"}},
        "model.safetensors",
    ),
    "config is a list": ({"more": {"config.json": b"[]"}}, "config.json"),
    "wrong width": ({"config": {"intermediate_size": 17}, "weights": tiny.tensors()}, "layers.0.up.weight"),
    "too few layers stored": ({"config": {"num_hidden_layers": 3}, "weights": tiny.tensors()}, "missing"),
    "layers nobody reads": ({"config": {"num_hidden_layers": 1}, "weights": tiny.tensors()}, "unread"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_checkpoints_are_refused(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how, message = BROKEN[what]
    folder = tiny.write(tmp_path / "checkpoint", tiny.files(**how))
    out = tmp_path / "tiny.bundle"
    assert message in refused(capsys, "--repo", folder, "--out", out, *CPU)
    assert left_behind(out) == []


def test_nan_in_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tiny.tensors()
    weights["encoder.layer.1.output.dense.weight"][3, 2] = np.nan
    folder = tiny.write(tmp_path / "checkpoint", tiny.files(weights=weights))
    message = refused(capsys, "--repo", folder, "--out", tmp_path / "x.bundle", *CPU)
    assert "layers.1.down.weight" in message


def test_flags(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "x.bundle")
    assert "either --repo or --config" in refused(capsys, *out)
    assert "no such folder" in refused(capsys, "--repo", "./nowhere", *out).replace(
        "does not exist", "no such folder"
    )
    assert "unknown" in refused(capsys, "--repo", checkpoint, *out, "--target", "openvino")
    assert "no 'sm90'" in refused(capsys, "--repo", checkpoint, *out, "--target", "tensorrt-rtx-sm90")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("x")
    assert "not a bundle" in refused(capsys, "--repo", checkpoint, "--out", tmp_path / "notes", *CPU)
    for flag in (["--max-length", "0"], ["--max-batch", "many"], ["--layout", "ragged"], ["--surprise"]):
        with pytest.raises(SystemExit) as stopped:
            main(["--repo", str(checkpoint), *flag])
        assert stopped.value.code == 2
    assert left_behind(tmp_path / "x.bundle") == []


def test_a_truss_config(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "trt_llm:\n  build:\n    base_model: encoder_bert\n    max_num_tokens: 4096\n"
        f"    checkpoint_repository: {{source: HF, repo: {checkpoint}}}\n"
        "    quantization_type: no_quant\n    kv_cache_free_gpu_mem_fraction: 0.9\n"
    )
    out = tmp_path / "tiny.bundle"
    assert main(["--config", str(config), "--out", str(out), *CPU]) == 0
    assert "kv_cache_free_gpu_mem_fraction" in capsys.readouterr().err
    with bei.load(out, allow_unverified=True) as model:
        assert model.manifest.limits.max_batch_tokens == 4096
    config.write_text(config.read_text().replace("no_quant", "fp8"))
    assert "fp8" in refused(capsys, "--config", config, "--out", out, *CPU)


def start(checkpoint: Path, out: Path, **limits: int) -> "subprocess.Popen[str]":
    """A compile in a process of its own."""

    def limit() -> None:
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, name), (value, value))

    command = [sys.executable, "-m", "bei.compiler.cli", "--repo", str(checkpoint), "--out", str(out), *CPU]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=limit)  # noqa: PLW1509


def test_a_full_disk(tmp_path: Path) -> None:
    """A file-size limit below the weights' size is the disk that fills up."""
    wide = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2}
    folder = tiny.write(tmp_path / "checkpoint", tiny.files(config=wide))
    out = tmp_path / "tiny.bundle"
    process = start(folder, out, RLIMIT_FSIZE=200_000)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    assert "cannot be written" in error
    assert "Traceback" not in error
    assert left_behind(out) == []


def test_ctrl_c(tmp_path: Path) -> None:
    wide = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 12}
    folder = tiny.write(tmp_path / "checkpoint", tiny.files(config=wide))
    out = tmp_path / "tiny.bundle"
    process = start(folder, out)
    partial = tmp_path / f".{out.name}.partial-{process.pid}"
    deadline = time.monotonic() + 60
    while not partial.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    if process.returncode == 0:  # the build was quicker than the signal
        assert left_behind(out) == ["tiny.bundle"]
        return
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert left_behind(out) == []
