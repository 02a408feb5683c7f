"""bei-compile --zoo: the matrix of models and targets, whatever happens to one of its cells."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bei
from bei.compiler.cli import main
from bei.compiler.engines.portability import Portability
from bei.compiler.fleet import cli
from bei.compiler.fleet.cells import options_for
from bei.compiler.fleet.machines import Here
from bei.compiler.fleet.run import FleetOptions, compile_fleet
from bei.compiler.lowering.attention import attention
from bei.compiler.options import BuildOptions
from bei.compiler.target import parse_target
from bei.runtime.bundle import open_bundle
from tests.compiler.checkpoint import tiny

SMALL, BASE, LARGE = (f"BAAI/bge-{size}-en-v1.5" for size in ("small", "base", "large"))
CPU, CUDA = "onnxruntime-cpu", "onnxruntime-cuda"


def write_zoo(path: Path, *repos: str, mpnet: str = "") -> Path:
    """A zoo of BERTs, of which it calls one an MPNet."""
    facts = {"task": "embed", "revision": "main", "licence": "mit", "status": "supported"}
    entries = [
        {
            "repo": repo,
            "adapter": "mpnet" if repo == mpnet else "bert",
            **facts,
            "params": 1,
            "max_length": 24,
        }
        for repo in repos
    ]
    path.write_text(json.dumps(entries))
    return path


class Zoo:
    """Three models, two of them with weights, and `bei-compile --zoo` over them."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self._capsys = root, capsys
        self.file = write_zoo(root / "zoo.yaml", SMALL, BASE, LARGE)
        self.weights, self.out = root / "weights", root / "out"
        self.write(SMALL)
        self.write(BASE, config={"hidden_act": "relu"})

    def write(self, repo: str, **changes: Any) -> None:
        tiny.write(self.weights / repo.replace("/", "--"), tiny.files(**changes))

    def arguments(
        self, *more: object, targets: Sequence[str] = (CPU, CUDA), workers: int | None = 2
    ) -> list[str]:
        given = ("--zoo", self.file, "--weights", self.weights, "--out", self.out, "--no-parity", "--json")
        at_once = () if workers is None else ("--workers", workers)
        return [str(x) for x in (*given, "--targets", ",".join(targets), *at_once, *more)]

    def run(self, *more: object, **given: Any) -> tuple[int, list[dict[str, Any]]]:
        """Exit code and cells."""
        code = main(self.arguments(*more, **given))
        said = self._capsys.readouterr()
        return code, json.loads(said.out)["cells"]


@pytest.fixture
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which is quicker: for what does not depend on processes."""
    monkeypatch.setattr(cli, "machine_for", lambda **given: Here())


@pytest.fixture
def zoo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Zoo:
    return Zoo(tmp_path, capsys)


def outcomes(cells: Iterable[dict[str, Any]]) -> dict[tuple[str, str], str]:
    return {(cell["repo"], cell["target"]): cell["outcome"] for cell in cells}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_the_whole_matrix_and_again(zoo: Zoo) -> None:
    zoo.file = write_zoo(zoo.file, SMALL, LARGE)
    code, cells = zoo.run()
    assert code == 0
    assert [(cell["repo"], cell["target"]) for cell in cells] == [
        (repo, target) for repo in (SMALL, LARGE) for target in (CPU, CUDA)
    ]
    assert {cell["outcome"] for cell in cells} == {"built"}
    assert [cell["weights"] for cell in cells] == ["real", "real", "synthetic", "synthetic"]
    for cell in cells:
        manifest = open_bundle(zoo.out / cell["bundle"]).manifest
        name = cell["repo"].partition("/")[2] + (".stand-in" if cell["weights"] == "synthetic" else "")
        assert (manifest.name, [engine.target for engine in manifest.engines]) == (name, [cell["target"]])
    with bei.load(zoo.out / CPU / f"{SMALL}.bundle", allow_unverified=True) as model:
        assert model.encode(["hello world"]).shape == (1, 8)
    assert sorted(path.name for path in zoo.out.iterdir()) == [".lock", "fleet.json", CPU, CUDA]
    assert set(outcomes(zoo.run()[1]).values()) == {"kept"}


@pytest.mark.usefixtures("_here")
def test_only_what_changed_is_built_again(zoo: Zoo) -> None:
    zoo.run(targets=[CPU])
    zoo.write(BASE)
    damaged = zoo.out / CPU / f"{SMALL}.bundle" / "model.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    code, cells = zoo.run(targets=[CPU])
    assert code == 0
    assert outcomes(cells) == {(SMALL, CPU): "built", (BASE, CPU): "built", (LARGE, CPU): "kept"}
    zoo.file = write_zoo(zoo.file, SMALL)
    assert set(outcomes(zoo.run("--max-batch", 3, targets=[CPU])[1]).values()) == {"built"}


@pytest.mark.usefixtures("_here")
def test_one_that_fails_does_not_stop_the_others(zoo: Zoo) -> None:
    write_zoo(zoo.file, SMALL, BASE, LARGE, "someone/else", mpnet=BASE)
    (zoo.weights / SMALL.replace("/", "--") / "config.json").write_text("[]")
    code, cells = zoo.run(targets=[CPU])
    assert code == 2
    assert [cell["outcome"] for cell in cells] == ["failed", "failed", "built", "failed"]
    for cell, reason in zip(cells, ("config.json", "the zoo says mpnet", "", "someone/else"), strict=True):
        assert reason in (cell["reason"] or "")
    zoo.write(SMALL)
    write_zoo(zoo.file, SMALL, BASE, LARGE)
    code, cells = zoo.run(targets=[CPU])
    assert (code, [cell["outcome"] for cell in cells]) == (0, ["built", "built", "kept"])


@pytest.mark.usefixtures("_here")
def test_the_table(zoo: Zoo, capsys: pytest.CaptureFixture[str]) -> None:
    write_zoo(zoo.file, SMALL, LARGE, mpnet=LARGE)
    arguments = [argument for argument in zoo.arguments(targets=[CPU]) if argument != "--json"]
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert main(arguments) == 2
    again = capsys.readouterr().out
    for text in (SMALL, "synthetic", "real", "the zoo says mpnet", "2 bundles: 1 built, 1 failed"):
        assert text in said.out
    assert "there already" in again
    assert "2 bundles: 1 there already, 1 failed" in again
    assert said.err.count("\n") == 2


def test_a_failed_gate_is_exit_1_and_tried_again(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*parts: Any) -> Any:
        right: Any = attention
        return right(*parts[:-1], replace(parts[-1], scale=1.5 * parts[-1].scale))

    options = FleetOptions(
        zoo=write_zoo(zoo.file, SMALL),
        only="*",
        targets=(parse_target(CPU),),
        out=zoo.out,
        build=BuildOptions(repo=""),
        weights_dir=zoo.weights,
    )
    with monkeypatch.context() as patched:
        patched.setattr("bei.compiler.lowering.onnx_ops.attention", wrong)
        fleet = compile_fleet(options, Here())
    (cell,) = fleet.cells
    assert (fleet.exit_code, cell.outcome, cell.verdict) == (1, "built", "failed")
    fleet = compile_fleet(options, Here())
    (cell,) = fleet.cells
    assert (fleet.exit_code, cell.outcome, cell.verdict) == (0, "built", "passed")
    assert compile_fleet(options, Here()).cells[0].outcome == "kept"


def test_options_reach_only_the_targets_they_are_about() -> None:
    build = BuildOptions(repo="", card="l4", portability=Portability(hardware="ampere+"))
    for target, given in (
        (CPU, (None, "none")),
        ("tensorrt-rtx-sm89+sm120", ("l4", "none")),
        ("tensorrt-rtx-sm120", (None, "none")),
        ("cuda-sm89", ("l4", "none")),
        ("tensorrt-sm90", ("l4", "ampere+")),
    ):
        found = options_for(parse_target(target), build)
        assert (found.card, found.portability.hardware) == given


def test_a_cpu_cell_has_the_one_layout_and_precision_there_is(tmp_path: Path) -> None:
    of_gpus = BuildOptions(repo="", layout="packed", precision="bf16", calibration=tmp_path / "texts")
    assert options_for(parse_target(CPU), of_gpus) == BuildOptions(repo="")
    assert options_for(parse_target("cuda-sm89"), of_gpus) == of_gpus


WIDE = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 6}
"""Long enough in the building to be met there."""


def builders(out: Path) -> Iterator[int]:
    """The processes that write a bundle now."""
    return (int(path.name.rpartition("-")[2]) for path in out.glob("*/*/.*.partial-*"))


def start(zoo: Zoo) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "bei.compiler.cli", *zoo.arguments(targets=[CUDA], workers=1)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.usefixtures("_here")
def test_a_build_that_is_killed_is_one_failure(zoo: Zoo) -> None:
    zoo.file = write_zoo(zoo.file, SMALL, BASE)
    zoo.write(SMALL, config=WIDE)
    with start(zoo) as process:
        until(lambda: any(builders(zoo.out)))
        os.kill(next(builders(zoo.out)), signal.SIGKILL)
        out, error = process.communicate(timeout=120)
    cells = json.loads(out)["cells"]
    assert (process.returncode, error) == (2, "")
    assert [cell["outcome"] for cell in cells] == ["failed", "built"]
    assert "ended by SIGKILL (out of memory?)" in cells[0]["reason"]
    code, cells = zoo.run(targets=[CUDA])
    assert (code, [cell["outcome"] for cell in cells]) == (0, ["built", "kept"])
    assert not list(zoo.out.glob("*/*/.*"))


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_goes_on(zoo: Zoo, number: signal.Signals) -> None:
    zoo.file = write_zoo(zoo.file, SMALL, BASE)
    zoo.write(BASE, config=WIDE)
    with start(zoo) as process:
        until(lambda: bool(list(zoo.out.glob("*/BAAI/.bge-base*"))))
        (builder,) = builders(zoo.out)
        process.send_signal(number)
        _, error = process.communicate(timeout=120)
    assert "Traceback" not in error
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on from there" in error
        assert not list(zoo.out.glob("*/*/.*"))
    until(lambda: not Path(f"/proc/{builder}").exists())
    code, cells = zoo.run(targets=[CUDA])
    assert (code, [cell["outcome"] for cell in cells]) == (0, ["kept", "built"])
    assert not list(zoo.out.glob("*/*/.*"))


def test_two_runs_in_one_folder(zoo: Zoo, capsys: pytest.CaptureFixture[str]) -> None:
    from bei.compiler.fleet.state import holding

    with holding(zoo.out):
        assert main(zoo.arguments()) == 2
    assert "another bei-compile --zoo is writing there" in capsys.readouterr().err


@pytest.mark.usefixtures("_here")
def test_another_folder_from_the_cache(zoo: Zoo) -> None:
    pytest.importorskip("pyarrow")
    cache = ("--cache", zoo.root / "cache")
    first = zoo.run(*cache, targets=[CPU])[1]
    zoo.out = zoo.root / "another"
    second = zoo.run(*cache, targets=[CPU])[1]
    assert set(outcomes(second).values()) == {"cached"}
    assert [cell["size"] for cell in first] == [cell["size"] for cell in second]
    entry = min((zoo.root / "cache").iterdir())
    entry.write_bytes(b"damaged")
    zoo.out = zoo.root / "third"
    code, cells = zoo.run(*cache, targets=[CPU])
    assert code == 0
    assert sorted(outcomes(cells).values()) == ["built", "cached", "cached"]
    (warned,) = [cell for cell in cells if cell["outcome"] == "built"]
    assert "damaged" in warned["warnings"][0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--repo", "x"], "--repo: about one model"),
        (["--plan"], "--plan: about one model"),
        (["--policy", "p.json", "--timing-cache", "t"], "--policy, --timing-cache: about one model"),
        (["--only", "none/*"], "no model matches 'none/*'"),
        (["--workers", "0"], "--workers is 0"),
        (["--workers", "2", "--ray"], "Leave one out"),
        (["--targets", "openvino"], "unknown"),
        (["--target", "tensorrt-sm90"], "cannot be built here"),
        (["--cache", "s4://x"], "cannot be reached"),
        (["--card", "L4", "--target", "onnxruntime-cpu"], "none of the targets runs on SM89"),
        (["--version-compatible", "--target", "onnxruntime-cpu"], "compatibility are TensorRT's"),
    ],
)
def test_flags_that_do_not_fit(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write_zoo(tmp_path / "zoo.yaml", SMALL), tmp_path / "out"
    assert main(["--zoo", str(file), "--out", str(out), "--no-parity", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("flags", [["--only", "x"], ["--weights", "x"], ["--workers", "2"], ["--ray"]])
def test_flags_that_need_a_zoo(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--repo", "x", *flags]) == 2
    assert "go with --zoo" in capsys.readouterr().err


def test_a_state_that_is_none(zoo: Zoo, capsys: pytest.CaptureFixture[str]) -> None:
    zoo.out.mkdir()
    (zoo.out / "fleet.json").write_text("{}")
    assert main(zoo.arguments()) == 2
    assert "not the result of an earlier run" in capsys.readouterr().err
