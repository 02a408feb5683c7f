"""Peak memory of whole compiles to TensorRT-RTX against what is promised, 1.3 × plan + 1.5 GiB, and against the planner.

python -m benchmarks.build_memory [--only GLOB] [--parity]

Every model with all its layers at full width and random weights, `bei-compile --no-parity` in a process of its own, for
texts of up to 256 tokens; with ``--parity`` the whole command, whose peak is that of all its phases. Private memory is what
has to be there; resident memory also counts pages of mapped files (programs, the checkpoint, weights on their way to the
builder), which the system drops when it needs the room. "holds" says whether resident memory, the larger, does. The 8B model
is a file of the real size without data: it is planned, and refused where memory does not do.
"""

import argparse
import fnmatch
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import peak_mb, save

from bei.compiler.build import compile_bundle, plan_build
from bei.compiler.options import BuildOptions
from bei.compiler.parity.certificate import certifier
from bei.compiler.planning.gate import check_host
from bei.compiler.zoo.fact_files import facts_of
from bei.compiler.zoo.fixture import FixtureOptions, write_fixture
from bei.compiler.zoo.shapes import dimensions
from bei.errors import EngineError

ROOT = Path(__file__).parents[1]
TARGET = "tensorrt-rtx-sm89"
WHAT = (
    "Peak memory of bei-compile --no-parity, tensorrt-rtx-sm89 (built, not executed), texts up to 256 tokens"
)
PARITY = WHAT.replace(" --no-parity", " with parity")
MODELS = {
    "MiniLM-L6": "sentence-transformers/all-MiniLM-L6-v2",
    "BERT-large": "BAAI/bge-large-en-v1.5",
    "Qwen3-0.6B": "Qwen/Qwen3-Embedding-0.6B",
    "gte-Qwen2-1.5B": "Alibaba-NLP/gte-Qwen2-1.5B-instruct",
    "llama-nemotron-8B": "nvidia/llama-embed-nemotron-8b",
}
PLANNED_ONLY = "llama-nemotron-8B"
MACHINE = 16 << 30
"""Bytes of the machine that the large model is refused on."""


def options(checkpoint: Path, out: Path | None = None) -> BuildOptions:
    return BuildOptions(repo=str(checkpoint), out=out, targets=(TARGET,), max_length=256)


def measure(checkpoint: Path, folder: Path, *, parity: bool) -> dict[str, Any]:
    """One compile in this process."""
    certify = certifier() if parity else None
    _, manifest = compile_bundle(options(checkpoint, folder / "bundle"), certify=certify)
    (engine,) = manifest.engines
    return {
        "profiles": len(engine.profiles),
        "plan MiB": round(engine.evidence["plan_bytes"] / 2**20),
        "resident MiB": round(peak_mb() * 1e6 / 2**20),
    }


def row(name: str, *, parity: bool) -> dict[str, Any]:
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
            return found | _apart(checkpoint, temporary, parity=parity)
        try:
            check_host(plans, MACHINE)
        except EngineError as error:
            return found | {"note": f"on a machine of {MACHINE >> 30} GiB: {error}"}
        return found


def _apart(checkpoint: Path, temporary: str, *, parity: bool) -> dict[str, Any]:
    """The compile in a process of its own, its private memory looked at every 50 ms."""
    command = [sys.executable, "-m", "benchmarks.build_memory", "--measure", str(checkpoint), temporary]
    command += ["--parity"] * parity
    private = 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            private = max(private, _private(process.pid))
            time.sleep(0.05)
        assert process.stdout is not None
        found: dict[str, Any] = json.loads(process.stdout.read().splitlines()[-1])
    allowed = round(1.3 * found["plan MiB"] + 1536)
    found |= {"private MiB": private // 1024, "1.3 × plan + 1.5 GiB": allowed}
    return found | {"holds": "yes" if found["resident MiB"] <= allowed else "no"}


def _private(pid: int) -> int:
    """KiB of anonymous memory; 0 when the process has just ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the memory of whole compiles.")
    parser.add_argument("--only", default="*", metavar="GLOB", help=f"models: {', '.join(MODELS)}")
    parser.add_argument(
        "--measure", nargs=2, metavar="DIR", help="checkpoint and scratch folder; prints JSON"
    )
    parser.add_argument("--parity", action="store_true", help="the whole command, in results of their own")
    args = parser.parse_args(argv)
    if args.measure is not None:
        print(json.dumps(measure(*map(Path, args.measure), parity=args.parity)))
        return 0
    chosen = [name for name in MODELS if fnmatch.fnmatchcase(name, args.only)]
    if args.parity:
        chosen = [name for name in chosen if name != PLANNED_ONLY]
    name, what = ("build_memory_parity", PARITY) if args.parity else ("build_memory", WHAT)
    save(name, what, [row(model, parity=args.parity) for model in chosen])
    return 0


if __name__ == "__main__":
    sys.exit(main())
