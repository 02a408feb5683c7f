"""bei-compile --plan and --card as their users meet them."""

import json
import re
from pathlib import Path

import pytest

from bei.compiler import build
from bei.compiler.cli import main
from bei.compiler.engines import tensorrt
from bei.compiler.planning.memory import TOLERANCE
from bei.compiler.zoo.fact_files import facts_of
from bei.compiler.zoo.fixture import FixtureOptions, write_fixture
from bei.manifest import decode_manifest

RTX = "tensorrt-rtx-sm89"


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers at full width, zeros."""
    folder = tmp_path_factory.mktemp("planning") / "minilm"
    facts = facts_of("sentence-transformers/all-MiniLM-L6-v2")
    write_fixture(facts, folder, FixtureOptions(full_width=True, layers=2, sparse=True))
    return folder


def test_the_plan_as_json(minilm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = ("--target", RTX, "--target", "tensorrt-sm90", "--target", "onnxruntime-cpu")
    assert main(["--repo", str(minilm), "--plan", "--json", *targets]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [engine["target"] for engine in found["engines"]] == [RTX, "tensorrt-sm90"]
    assert found["not_planned"] == ["onnxruntime-cpu"]
    one = found["engines"][0]
    assert one["device_bytes"] > one["weights_bytes"] + one["activation_bytes"] > 0
    assert set(one["max_batch_tokens_on"]) == {"L4", "RTX-4090"}
    assert [p["max_batch"] * p["max_length"] <= 16384 for p in one["profiles"]] == [True] * len(
        one["profiles"]
    )


def test_the_plan_as_a_table(minilm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--repo", str(minilm), "--plan", "--target", RTX, "--target", "onnxruntime-cpu"]) == 0
    said = capsys.readouterr().out
    for word in (RTX, "device: peak", "RTX-4090", "all that --max-batch holds", "nothing to plan"):
        assert word in said


def test_a_card_that_is_too_small_is_refused_before_the_build(
    minilm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    huge = ("--max-batch", "100000", "--max-batch-tokens", "10000000", "--card", "L4", "--target", RTX)
    for more in (["--plan"], ["--no-parity", "--out", str(tmp_path / "out")]):
        if "--plan" not in more and tensorrt.available("tensorrt-rtx") is not None:
            continue
        assert main(["--repo", str(minilm), *huge, *more]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "The largest --max-batch-tokens that fits is " in captured.err
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(tensorrt.available("tensorrt-rtx") is not None, reason="needs TensorRT-RTX")
def test_a_host_that_is_too_small_is_refused_before_the_build(
    minilm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "free_memory", lambda: 10**9)
    assert main(["--repo", str(minilm), "--no-parity", "--target", RTX, "--out", str(tmp_path / "out")]) == 2
    assert "building needs about" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(tensorrt.available("tensorrt-rtx") is not None, reason="needs TensorRT-RTX")
def test_the_manifest_says_what_was_planned_and_what_was_built(
    minilm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = (
        "--repo",
        str(minilm),
        "--no-parity",
        "--precision",
        "fp16",
        "--target",
        RTX,
        "--out",
        str(out),
    )
    assert main([*arguments, "--card", "L4"]) == 0
    assert "planned" not in capsys.readouterr().err
    (engine,) = decode_manifest((out / "manifest.json").read_bytes(), "manifest").engines
    memory = engine.evidence["memory"]
    assert memory["within"] is True
    assert abs(memory["ratio"] - 1) <= TOLERANCE
    assert memory["reported_activation_bytes"] == [profile.activation_bytes for profile in engine.profiles]


@pytest.fixture(scope="module")
def eight_billion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every layer of the real shape, in files of the real size that are holes."""
    folder = tmp_path_factory.mktemp("planning") / "large"
    facts = facts_of("nvidia/llama-embed-nemotron-8b")
    write_fixture(facts, folder, FixtureOptions(full_width=True, layers=32, sparse=True))
    return folder


def test_an_eight_billion_model_is_planned_without_reading_it(
    eight_billion: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--repo", str(eight_billion), "--plan", "--json", "--target", RTX]
    assert main([*arguments, "--max-length", "512"]) == 0
    (engine,) = json.loads(capsys.readouterr().out)["engines"]
    assert engine["weights_bytes"] > 14 * 10**9
    assert engine["host_bytes"] > 1.3 * engine["plan_bytes"]


@pytest.mark.skipif(tensorrt.available("tensorrt-rtx") is not None, reason="needs TensorRT-RTX")
def test_an_eight_billion_model_is_refused_with_what_it_needs_and_is_not_read(
    eight_billion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "free_memory", lambda: 16 * 10**9)
    monkeypatch.setattr(build, "check_finite", lambda *_: pytest.fail("the weights were read"))
    out = tmp_path / "out"
    arguments = ["--repo", str(eight_billion), "--no-parity", "--target", RTX, "--out", str(out)]
    assert main([*arguments, "--max-length", "512"]) == 2
    said = capsys.readouterr().err
    needs = re.search(r"building needs about ([\d.]+) GB of memory .* a plan of ([\d.]+) GB", said)
    assert needs is not None
    assert float(needs[1]) > float(needs[2]) > 14
    assert "16.0 GB are free here. Build on a machine with more memory" in said
    assert not out.exists()
