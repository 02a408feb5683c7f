"""What a large model's graph costs: seconds and peak memory to read, check and emit it, with no weight data in memory.

python -m benchmarks.large_models [--only GLOB]

All layers at full width, as a stand-in whose files have the real size and are holes (`bei-zoo fixture --sparse`): the
steps that read every byte of the weights are the ones left out, and only they grow with the data. One process a model,
so that peak memory is its own.
"""

import argparse
import fnmatch
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.record import peak_mb, save

from bei.adapters.registry import adapter_for
from bei.compiler.checkpoint import load
from bei.compiler.checkpoint.checkpoint import open_checkpoint
from bei.compiler.lowering.emit import emit
from bei.compiler.lowering.policy import ONNXRUNTIME_CPU, TENSORRT
from bei.compiler.lowering.signature import signature
from bei.compiler.weights import check_shapes
from bei.compiler.zoo.fact_files import facts_of, load_facts
from bei.compiler.zoo.fixture import FixtureOptions, real_size, write_fixture
from bei.compiler.zoo.shapes import dimensions

ROOT = Path(__file__).parents[1]
LARGE = 1e10
"""Bytes of weights from which on a model counts as large."""
WHAT = "Large models: reading, shape checks and graph emission on files of the real size without data"
POLICIES = {
    "ORT": ONNXRUNTIME_CPU,
    "TRT padded": TENSORRT,
    "TRT packed": replace(TENSORRT, layout="packed"),
}


def measure(folder: Path) -> dict[str, Any]:
    """Seconds of each step in this process, and its peak resident memory."""
    before, started = peak_mb(), time.perf_counter()
    checkpoint = open_checkpoint(str(folder))
    with mock.patch.object(load, "check_finite"):  # it reads every byte, and there are none
        model = load.load_model(checkpoint, adapter_for(checkpoint.config))
    needs = signature(model.cfg, model.head)
    check_shapes(checkpoint.name, model.weights, needs.needed, needs.optional)
    row: dict[str, Any] = {"read and check s": _since(started)}
    for name, policy in POLICIES.items():
        started = time.perf_counter()
        graph = emit(model.cfg, model.head, model.weights, policy)
        row[f"{name} graph MB"] = round(len(graph.serialize()) / 1e6, 1)
        row[f"{name} graph s"] = _since(started)
    return row | {"peak MB": round(peak_mb()), "of which imports MB": round(before)}


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 2)


def model(repo: str) -> dict[str, Any]:
    """One row."""
    facts = facts_of(repo)
    layers = dimensions(facts.config)["L"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "checkpoint")
        plan = write_fixture(facts, folder, FixtureOptions(full_width=True, layers=layers, sparse=True))
        command = [sys.executable, "-m", "benchmarks.large_models", "--measure", str(folder)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return {"model": repo, "layers": layers, "weights GB": round(plan.nbytes / 1e9, 1)} | measured


def large() -> list[str]:
    """Repositories of the zoo whose weights are large."""
    return [repo for repo, facts in load_facts().items() if real_size(facts) > LARGE]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure graphs of the zoo's large models.")
    parser.add_argument("--only", default="*", metavar="GLOB", help="repositories that match")
    parser.add_argument("--measure", type=Path, metavar="DIR", help="one stand-in; prints JSON")
    args = parser.parse_args(argv)
    if args.measure is not None:
        print(json.dumps(measure(args.measure)))
        return 0
    save("large_models", WHAT, [model(repo) for repo in large() if fnmatch.fnmatchcase(repo, args.only)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
