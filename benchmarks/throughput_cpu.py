"""Texts a second on the CPU: bei against sentence-transformers at each of its batch sizes, interleaved in one run.

    python -m benchmarks.throughput_cpu [--texts 600] [--rounds 3]

600 texts of lognormal length (67 tokens mean), two threads, tokenisation included; vectors are compared.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import numpy.typing as npt
from benchmarks.minilm import checkpoint, compile_bundle, lognormal_texts
from benchmarks.record import save, spread

BATCH_SIZES = (4, 8, 16, 32, 64, 128)
Vectors = npt.NDArray[np.float32]


def variants(bundle: Path, texts: list[str]) -> dict[str, Callable[[], Vectors]]:
    """Name → one pass over all texts."""
    import torch
    from sentence_transformers import SentenceTransformer

    import bei

    torch.set_num_threads(2)
    peer = SentenceTransformer(str(checkpoint()), device="cpu")
    model = bei.load(bundle, threads=2)
    runs: dict[str, Callable[[], Vectors]] = {"bei": lambda: model.encode(texts)}
    for size in BATCH_SIZES:
        runs[f"sentence-transformers, batch {size}"] = partial(peer.encode, texts, batch_size=size)
    return runs


def main() -> None:
    """One warm-up and some timed rounds of every variant, in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    texts = lognormal_texts(options.texts)
    with tempfile.TemporaryDirectory() as temporary:
        bundle = compile_bundle(Path(temporary) / "minilm.bundle")
        runs = variants(bundle, texts)
        vectors = {name: run() for name, run in runs.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - started)
    medians = {name: sorted(times)[len(times) // 2] for name, times in seconds.items()}
    best_peer = min(value for name, value in medians.items() if name != "bei")
    rows = [
        {
            "variant": name,
            "texts/s": spread([options.texts / t for t in seconds[name]], 0),
            "against the peer's best": f"{best_peer / medians[name]:.2f} ×",
            "largest difference from bei": f"{np.abs(vectors[name] - vectors['bei']).max():.1e}",
        }
        for name in runs
    ]
    what = (
        f"CPU throughput, all-MiniLM-L6-v2 fp32, {options.texts} texts (lognormal, 67 tokens mean), 2 threads"
    )
    save("throughput_cpu", what, rows)


if __name__ == "__main__":
    main()
