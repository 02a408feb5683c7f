"""New process to first vector on the CPU: bei against sentence-transformers, alternating in one run.

python benchmarks/cold_start.py [--rounds 7]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.minilm import checkpoint
from benchmarks.record import save, spread

BEI = "import sys, bei; v = bei.load(sys.argv[1], threads=2).encode(['a first text']); assert v.shape == (1, 384)"
PEER = (
    "import sys; from sentence_transformers import SentenceTransformer; "
    "v = SentenceTransformer(sys.argv[1], device='cpu').encode(['a first text']); assert v.shape == (1, 384)"
)


def start(code: str, path: Path) -> tuple[float, float]:
    """Seconds until the process has ended, and its peak memory in MiB."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: {code}")
    return time.perf_counter() - started, usage.ru_maxrss / 2**10


def main() -> None:
    """Alternate the two, files in the page cache."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as temporary:
        bundle = Path(temporary) / "minilm.bundle"
        compile_bundle = [
            sys.executable,
            "-m",
            "bei.compiler.cli",
            "--repo",
            str(checkpoint()),
            "--out",
            str(bundle),
        ]
        subprocess.run([*compile_bundle, "--target", "onnxruntime-cpu"], check=True)
        variants = {
            "bei, ONNX Runtime fp32": (BEI, bundle),
            "sentence-transformers fp32": (PEER, checkpoint()),
        }
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
        for _ in range(rounds):
            for name, (code, path) in variants.items():
                seen[name].append(start(code, path))
    medians = {name: sorted(t for t, _ in runs)[rounds // 2] for name, runs in seen.items()}
    slowest = max(medians.values())
    rows = [
        {
            "variant": name,
            "seconds to first vector": spread([t for t, _ in runs]),
            "peak MiB": spread([m for _, m in runs], 0),
            "times faster": round(slowest / medians[name], 1),
        }
        for name, runs in seen.items()
    ]
    weights = (checkpoint() / "model.safetensors").stat().st_size / 2**20
    save(
        "cold_start_cpu",
        f"Cold start on the CPU, all-MiniLM-L6-v2 (weights {weights:.0f} MiB), {rounds} rounds",
        rows,
    )


if __name__ == "__main__":
    main()
