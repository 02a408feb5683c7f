"""Peak memory of whole compiles to TensorRT-RTX against what is promised, 1.3 × plan + 1.5 GiB, and against the planner.

python -m benchmarks.build_memory [--only GLOB]

Every model with all its layers at full width and random weights, `bei-compile --no-parity` in a process of its own, for
texts of up to 512 tokens. Peaks are resident memory, mapped files included. The 8B model is a file of the real size
without data: it is planned, and refused where memory does not do.
"""

import argparse
import fnmatch
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import peak_mb, save

from bei.compiler.build import BuildOptions, compile_bundle, plan_build
from bei.compiler.planning.gate import check_host
from bei.compiler.zoo.fact_files import facts_of
from bei.compiler.zoo.fixture import FixtureOptions, write_fixture
from bei.compiler.zoo.shapes import dimensions
from bei.errors import EngineError

ROOT = Path(__file__).parents[1]
TARGET = "tensorrt-rtx-sm89"
WHAT = (
    "Peak memory of bei-compile --no-parity, tensorrt-rtx-sm89 (built, not executed), texts up to 512 tokens"
)
MODELS = {
    "MiniLM-L6": "sentence-transformers/all-MiniLM-L6-v2",
    "BERT-large": "BAAI/bge-large-en-v1.5",
    "Qwen3-0.6B": "Qwen/Qwen3-Embedding-0.6B",
    "gte-Qwen2-1.5B": "Alibaba-NLP/gte-Qwen2-1.5B-instruct",
    "llama-nemotron-8B": "nvidia/llama-embed-nemotron-8b",
}
PLANNED_ONLY = "llama-nemotron-8B"
MACHINE = 24 << 30
"""Bytes of the machine that the large model is refused on."""


def options(checkpoint: Path, out: Path | None = None) -> BuildOptions:
    return BuildOptions(repo=str(checkpoint), out=out, targets=(TARGET,), max_length=512)


def measure(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """One compile in this process."""
    _, manifest = compile_bundle(options(checkpoint, folder / "bundle"))
    (engine,) = manifest.engines
    plan, peak = engine.evidence["plan_bytes"] / 2**20, peak_mb() * 1e6 / 2**20
    allowed = 1.3 * plan + 1536
    return {
        "profiles": len(engine.profiles),
        "plan MiB": round(plan),
        "peak MiB": round(peak),
        "1.3 × plan + 1.5 GiB": round(allowed),
        "holds": "yes" if peak <= allowed else "no",
    }


def row(name: str) -> dict[str, Any]:
    """One model."""
    facts = facts_of(MODELS[name])
    sparse = name == PLANNED_ONLY
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Path(temporary, "checkpoint")
        layers = dimensions(facts.config)["L"]
        fixture = write_fixture(
            facts, checkpoint, FixtureOptions(full_width=True, layers=layers, sparse=sparse)
        )
        plans, _ = plan_build(options(checkpoint))
        found: dict[str, Any] = {
            "model": name,
            "layers": layers,
            "weights GB": round(fixture.nbytes / 1e9, 2),
        }
        found["planned MiB"] = round(plans[0].host / 2**20)
        if not sparse:
            return found | _apart(checkpoint, temporary)
        try:
            check_host(plans, MACHINE)
        except EngineError as error:
            return found | {"note": f"on a machine of 24 GiB: {error}"}
        return found


def _apart(checkpoint: Path, temporary: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.build_memory", "--measure", str(checkpoint), temporary]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the memory of whole compiles.")
    parser.add_argument("--only", default="*", metavar="GLOB", help=f"models: {', '.join(MODELS)}")
    parser.add_argument(
        "--measure", nargs=2, metavar="DIR", help="checkpoint and scratch folder; prints JSON"
    )
    args = parser.parse_args(argv)
    if args.measure is not None:
        print(json.dumps(measure(*map(Path, args.measure))))
        return 0
    save("build_memory", WHAT, [row(name) for name in MODELS if fnmatch.fnmatchcase(name, args.only)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
