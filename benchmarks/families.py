"""What a family costs: lines of its adapter, compile time, plan size, peak memory, parity of its worst text.

python -m benchmarks.families [--only GLOB]

One process a build, so that peak memory is its own. Models are stand-ins of reduced size: times and sizes compare
families with each other, not with real models.
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

from bei.compiler.build import compile_bundle
from bei.compiler.engines import tensorrt
from bei.compiler.engines.build import RTX_DEFAULT
from bei.compiler.options import BuildOptions
from bei.compiler.parity.matrix import check_entry
from bei.compiler.precision.policy import Mode
from bei.compiler.zoo.sources import fixture_or_weights
from bei.compiler.zoo.zoo import ZooEntry, load_zoo

ROOT = Path(__file__).parents[1]
WHAT = "Families: stand-ins of reduced size, ONNX Runtime (CPU) and TensorRT-RTX (four SMs, FP16)"


def family(entries: Sequence[ZooEntry], cache: Path) -> dict[str, Any]:
    """One row: the worst parity of all its models, the cost of its first stand-in."""
    name = entries[0].adapter
    lines = len((ROOT / "adapters" / f"{name.replace('-', '_')}.py").read_text().splitlines())
    checked = [check_entry(entry, None, cache) for entry in entries]
    folder = next(
        f for e in entries for f, kind in [fixture_or_weights(e, None, cache)] if kind == "synthetic"
    )
    cpu = _apart(folder, "onnxruntime-cpu")
    row: dict[str, Any] = {"family": name, "models": len(entries), "adapter lines": lines}
    row |= {"ORT s": cpu["seconds"], "ORT peak MB": cpu["peak_mb"]}
    if tensorrt.available("tensorrt-rtx") is None:
        rtx = _apart(folder, RTX_DEFAULT)
        row |= {"RTX s": rtx["seconds"], "RTX peak MB": rtx["peak_mb"], "plan MB": rtx["plan_mb"]}
    cosines = [r.cosine for r in checked if r.cosine is not None]
    logits = [r.logit_error for r in checked if r.logit_error is not None]
    return row | {
        "passed": f"{sum(r.verdict == 'passed' for r in checked)} of {len(checked)}",
        "worst 1 − cosine": f"{1 - min(cosines):.1e}" if cosines else "",
        "worst logit error": f"{max(logits):.1e}" if logits else "",
    }


def build(folder: Path, target: str) -> dict[str, float]:
    """Seconds, peak resident memory and the plan's size of one build in this process."""
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        precision: Mode = "auto" if target == "onnxruntime-cpu" else "fp16"
        options = BuildOptions(
            repo=str(folder), out=Path(name, "bundle"), targets=(target,), precision=precision, offline=True
        )
        out, manifest = compile_bundle(options)
        seconds = time.perf_counter() - started
        size = (out / manifest.engines[0].path).stat().st_size
    return {"seconds": round(seconds, 2), "peak_mb": round(peak_mb()), "plan_mb": round(size / 1e6, 1)}


def _apart(folder: Path, target: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.families", "--build", str(folder), target]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure every family of the zoo.")
    parser.add_argument("--only", default="*", metavar="GLOB", help="adapters whose name matches")
    parser.add_argument("--build", nargs=2, metavar=("DIR", "TARGET"), help="one build; prints JSON")
    args = parser.parse_args(argv)
    if args.build is not None:
        print(json.dumps(build(Path(args.build[0]), args.build[1])))
        return 0
    families: dict[str, list[ZooEntry]] = {}
    for entry in load_zoo(ROOT / "model_zoo.yaml"):
        if fnmatch.fnmatchcase(entry.adapter, args.only):
            families.setdefault(entry.adapter, []).append(entry)
    with tempfile.TemporaryDirectory() as name:
        save("families", WHAT, [family(entries, Path(name)) for entries in families.values()])
    return 0


if __name__ == "__main__":
    sys.exit(main())
