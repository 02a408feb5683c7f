"""bei-plan as its users see it: a plan, JSON, and reasons why there is none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.runtime.capacity.models import FREE, constant, engine, linear
from tests.runtime.tiny import write_bundle

from bei.runtime.bundle import read_bundle
from bei.runtime.capacity import cli, measure
from bei.runtime.capacity.cli import main
from bei.runtime.capacity.curve import RESTED, EngineCurve, shape_of
from bei.runtime.capacity.store import Curves, read_curves, write_curves

LOAD = ["--rate", "50", "--length-distribution", "uniform:2,14", "--p99", "50"]
HOST = msgspec.structs.replace(FREE, cores=2, request=3e-4, text=5e-5)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short trials and short measurements: what is asked here does not need good numbers."""
    monkeypatch.setattr(cli, "REQUESTS", 200)
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(measure, "CALLS", 2)
    monkeypatch.setattr(measure, "REQUESTS", 10)
    monkeypatch.setattr(measure, "REST", 0.0)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "tiny.bundle")


@pytest.fixture
def curves(bundle: Path) -> Path:
    """Beside the bundle: a CPU, and a GPU whose engine the bundle does not have."""
    shape = shape_of(read_bundle(bundle).manifest.encoder)

    def of_bundle(curve: EngineCurve) -> EngineCurve:
        return msgspec.structs.replace(curve, shape=shape)

    file = bundle.with_name("tiny.curves.json")
    cpu = of_bundle(engine(linear(0.004, 1e-4), kind="cpu", device="a CPU"))
    gpu = of_bundle(engine(constant(0.001), device="NVIDIA H200"))
    write_curves(file, Curves(engines=(cpu, gpu), hosts=(HOST,)))
    return file


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def plan(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(one) for one in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return plan


def answer(run: Run, *arguments: str | Path) -> dict[str, Any]:
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_plan_as_json(run: Run, bundle: Path, curves: Path) -> None:
    plan = answer(run, bundle, *LOAD)
    cpu, gpu = sorted(plan["options"], key=lambda one: one["device"] != "a CPU")
    assert plan["rate"] == 50 and plan["lengths"] == "uniform:2,14" and plan["cut"] == 0
    assert cpu["replicas"] == 1 and cpu["in_bundle"] and not gpu["in_bundle"]
    assert cpu["p99_ms"] <= 50 and cpu["alone_p99_ms"] < cpu["p99_ms"]
    assert gpu["price_assumed"] and gpu["price_hour"] == 4.59
    assert gpu["cost_million_texts"] == pytest.approx(4.59 * gpu["replicas"] / (50 * 3600) * 1e6)
    assert any("--target" in line for line in gpu["advice"])
    assert plan["options"][0]["cost_hour"] <= plan["options"][1]["cost_hour"]


def test_the_same_question_has_the_same_answer(run: Run, bundle: Path, curves: Path) -> None:
    arguments: list[str | Path] = [bundle, *LOAD, "--device", "cpu", "--max-batch-tokens", "128"]
    assert answer(run, *arguments) == answer(run, *arguments)


def test_a_plan_for_people(run: Run, bundle: Path, curves: Path) -> None:
    code, out, err = run(bundle, *LOAD, "--device", "H200", "--spare", "1")
    assert (code, err) == (0, "")
    assert "1 + 1 spare" in out and "9.18*" in out
    for part in ("cuda-sm90", "bound by", "--max-batch-tokens", "spread at random", "An assumed price"):
        assert part in out
    assert "a CPU" not in out and "Leave room" not in out
    assert "Leave room" in run(bundle, *LOAD, "--device", "cpu")[1]


def test_prices_are_the_users(run: Run, bundle: Path, curves: Path, tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("h200: 2\ncpu: 0.5\n")
    arguments: list[str | Path] = [bundle, *LOAD, "--prices", tmp_path / "prices.yaml", "--price", "H200=3"]
    plan = answer(run, *arguments)
    assert {one["card"]: one["price_hour"] for one in plan["options"]} == {"H200": 3, "cpu": 0.5}
    assert not any(one["price_assumed"] for one in plan["options"])


def test_the_host_beside_a_gpu_is_as_large_as_the_user_says(run: Run, bundle: Path, curves: Path) -> None:
    few, many = (answer(run, bundle, *LOAD, "--device", "H200", "--host-cores", n) for n in ("1", "16"))
    assert "1 core;" in few["options"][0]["host"] and "16 cores" in many["options"][0]["host"]
    assert few["options"][0]["busy"]["host"] > many["options"][0]["busy"]["host"]


def test_a_promise_that_cannot_be_kept(run: Run, bundle: Path, curves: Path) -> None:
    hopeless = [*LOAD[:-1], "0.5", "--device", "cpu"]
    code, out, err = run(bundle, *hopeless)
    assert (code, err) == (1, "")
    assert "none will do" in out
    assert (
        "p99 of 0.5 ms cannot be kept by any number of replicas: a request that finds one idle takes" in out
    )
    code, out, _ = run(bundle, *hopeless, "--json")
    (option,) = json.loads(out)["options"]
    assert code == 1 and option["replicas"] is None and option["p99_ms"] is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (["--length-distribution", "normal:1,2"], "--length-distribution 'normal:1,2': not a distribution"),
        (["--length-distribution", "nowhere.txt"], "no such file"),
        (["--texts-per-request", "many"], "--texts-per-request 'many': not a distribution"),
        (
            ["--device", "H100"],
            r"--device H100: no times of tiny were measured there (have: cpu (a CPU), H200",
        ),
        (["--price", "H200"], "--price 'H200': need NAME=DOLLARS"),
        (["--price", "H200=cheap"], "price of H200: got 'cheap', need US dollars an hour"),
        (["--prices", "nowhere.yaml"], "--prices nowhere.yaml: cannot be read"),
        (["--max-batch-tokens", "4096"], "--max-batch-tokens 4096: at most 256 on a CPU"),
        (["--curves", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--curves", "a", "--curves", "b", "--measure"], "--measure: writes one file"),
    ],
)
def test_what_cannot_be_used_is_refused(
    changes: list[str], why: str, run: Run, bundle: Path, curves: Path
) -> None:
    code, out, err = run(bundle, *LOAD, *changes)
    assert (code, out) == (2, "")
    assert err.startswith("bei-plan: ") and why in err


def test_half_a_question_is_refused(run: Run, bundle: Path, curves: Path) -> None:
    assert "together" in run(bundle, "--rate", "5")[2]
    assert "nothing to do" in run(bundle)[2]
    assert "no such folder" in run("nowhere", *LOAD)[2]


def test_curves_of_another_model_are_none(run: Run, bundle: Path, tmp_path: Path) -> None:
    write_curves(tmp_path / "other.json", Curves(engines=(engine(constant(1)),), hosts=(HOST,)))
    code, _, err = run(bundle, *LOAD, "--curves", tmp_path / "other.json")
    assert code == 2 and "tiny: no measured times in the curves given" in err


def test_a_file_of_texts_is_tokenised_by_the_bundle(
    run: Run, bundle: Path, curves: Path, tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("hello world\nhello hello hello hello hello hello hello hello\n" * 9)
    arguments = ("--rate", "5", "--p99", "90", "--device", "cpu", "--max-batch-tokens", "64")
    plan = answer(run, bundle, *arguments, "--length-distribution", tmp_path / "texts.txt")
    assert plan["lengths"] == "texts.txt (18 texts, 7 tokens on average)"


@pytest.mark.parametrize("task", ["embed", "rerank", "classify", "token-classify"])
def test_the_first_plan_measures_this_machine(task: str, run: Run, tmp_path: Path) -> None:
    labels = {"embed": (), "rerank": ("score",)}.get(task, ("a", "b"))
    bundle = write_bundle(tmp_path / "new.bundle", task=task, labels=labels)  # type: ignore[arg-type]
    plan = answer(run, bundle, "--rate", "1", "--length-distribution", "uniform:2,14", "--p99", "60000")
    (option,) = plan["options"]
    assert option["target"] == "onnxruntime-cpu" and option["replicas"] == 1
    kept = read_curves(tmp_path / "new.curves.json")
    (curve,), (host,) = kept.engines, kept.hosts
    assert {point.calls for point in curve.points} == {RESTED, 1, curve.concurrency}
    assert max(point.length for point in curve.points) == 16 and curve.max_tokens <= 256
    assert all(point.seconds > 0 for point in curve.points)
    assert host.request > 0 and host.beside_engine >= 1 and host.tokenize_text >= 0 and host.cores >= 1


def test_measuring_alone_says_what_was_measured(run: Run, bundle: Path, curves: Path) -> None:
    code, out, err = run(bundle, "--measure", "--threads", "1")
    assert (code, err) == (0, "")
    assert "onnxruntime-cpu" in out and "tokens/s" in out
    assert len(read_curves(curves).engines) == 3
