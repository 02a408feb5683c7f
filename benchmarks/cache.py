"""What the cache and resuming save: seconds of a build, of the same from the cache, and of a zoo run that finds all done.

    python -m benchmarks.cache [--runs N] [--only GLOB]

Each number is a whole `bei-compile` process, parity included; "hit" is also given without the start of the process.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.minilm import checkpoint
from benchmarks.record import save, spread

ROOT = Path(__file__).parents[1]
RTX = "tensorrt-rtx-sm80+sm86+sm89+sm120"


def compiled(*arguments: object) -> tuple[float, dict[str, Any]]:
    """Seconds of one process, and its result."""
    command = [sys.executable, "-m", "bei.compiler.cli", "--json", *map(str, arguments)]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - started, json.loads(done.stdout)


def hits(targets: Sequence[str], folder: Path, runs: int) -> dict[str, Any]:
    """One build of MiniLM into an empty cache, then the same from it."""
    given = ("--repo", checkpoint(), "--targets", ",".join(targets), "--cache", folder / "cache")
    built, result = compiled(*given, "--out", folder / "built.bundle")
    assert not result["cached"]
    found = [compiled(*given, "--out", folder / f"{run}.bundle") for run in range(runs)]
    assert all(result["cached"] for _, result in found)
    return {
        "what": f"MiniLM, {', '.join(targets)}",
        "built s": round(built, 2),
        "again s": spread([seconds for seconds, _ in found]),
        "of which after the imports s": spread([result["seconds"] for _, result in found]),
        "cache entry MB": round(_size(folder / "cache") / 1e6, 1),
    }


def resumed(only: str, folder: Path, runs: int) -> list[dict[str, Any]]:
    """A zoo run, the same again where all is done, and into an empty folder from the cache."""
    given = ("--zoo", ROOT / "model_zoo.yaml", "--only", only, "--targets", "onnxruntime-cpu")
    cached = ("--cache", folder / "cache")
    built, result = compiled(*given, *cached, "--out", folder / "zoo")
    again = [compiled(*given, *cached, "--out", folder / "zoo") for _ in range(runs)]
    other = [compiled(*given, *cached, "--out", folder / f"zoo{run}") for run in range(runs)]
    assert _outcomes(result) == {"built"}
    assert all(_outcomes(result) == {"kept"} for _, result in again)
    assert all(_outcomes(result) == {"cached"} for _, result in other)
    count = len(result["cells"])
    rows = (("all there already", again), ("another folder, from the cache", other))
    return [
        {
            "what": f"{count} bundles: {how}",
            "built s": round(built, 2),
            "again s": spread([s for s, _ in found]),
        }
        for how, found in rows
    ]


def _outcomes(result: dict[str, Any]) -> set[str]:
    return {cell["outcome"] for cell in result["cells"]}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> None:
    """MiniLM for the CPU and, where it can be built, TensorRT-RTX; then the zoo."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5, help="of everything but the builds (default 5)")
    parser.add_argument(
        "--only", default="BAAI/*", metavar="GLOB", help="models of the zoo (default %(default)s)"
    )
    args = parser.parse_args()
    targets = [["onnxruntime-cpu"]]
    if importlib.util.find_spec("tensorrt_rtx"):
        targets.append(["onnxruntime-cpu", RTX])
    rows = []
    for some in targets:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(hits(some, Path(folder), args.runs))
    with tempfile.TemporaryDirectory() as folder:
        rows += resumed(args.only, Path(folder), args.runs)
    save("cache", "Bundles from the cache, and zoo runs that go on: whole processes, parity included", rows)


if __name__ == "__main__":
    main()
