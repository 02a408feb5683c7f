"""BERT-base in batches of 128 × 128 tokens on one GPU, and on all of a host's: one engine and one thread a GPU.

python -m benchmarks.cuda_replicas [--out h100]

Wall time from the first batch handed over to the last vector, ids in host memory before; medians of three turns taken in
alternation. Random weights, fp16. Needs the extra cuda and PyTorch.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from benchmarks.cubins import build
from benchmarks.cuda_models import rows_of
from benchmarks.cuda_shapes import CONFIGS, EMBED, random_weights
from benchmarks.record import save

from bei.compiler.lowering.cuda_options import CudaOptions
from bei.runtime.cuda.engine import Engine
from bei.runtime.cuda.gpu import Gpu

BATCHES = 160
"""A GPU; about a second."""


def work(engine: Engine, count: int) -> None:
    """``count`` batches, two in flight."""
    rows = rows_of([128] * 128)
    waiting = [engine.submit(rows)]
    for _ in range(count - 1):
        waiting.append(engine.submit(rows))
        engine.result(waiting.pop(0))
    engine.result(waiting.pop(0))


def texts_a_second(engines: Sequence[Engine]) -> float:
    """All engines at once."""
    with ThreadPoolExecutor(len(engines)) as pool:
        start = time.perf_counter()
        for done in [pool.submit(work, engine, BATCHES) for engine in engines]:
            done.result()
        return 128 * BATCHES * len(engines) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="h100")
    args = parser.parse_args()
    count = torch.cuda.device_count()
    with tempfile.TemporaryDirectory() as temporary:
        folder, cfg = Path(temporary), CONFIGS["bert-base"]
        plan = build(cfg, EMBED, random_weights(cfg, folder), CudaOptions(sm=90))
        engines = [Engine(Gpu(f"gpu {number}", number), plan, folder) for number in range(count)]
        for engine in engines:
            work(engine, 10)
        groups: dict[str, Sequence[Engine]] = {f"GPU {n}": [engine] for n, engine in enumerate(engines)}
        groups[f"all {count}"] = engines
        found: dict[str, list[float]] = {name: [] for name in groups}
        for _ in range(3):
            for name, group in groups.items():
                found[name].append(texts_a_second(group))
        best = max(statistics.median(found[name]) for name, group in groups.items() if len(group) == 1)
        lines: list[dict[str, Any]] = [
            {"replicas": name, "texts/s": round(rate := statistics.median(rates)), "times one": round(rate / best, 3)}
            for name, rates in found.items()
        ]  # fmt: skip
        for engine in engines:
            engine.close()
    save(f"{args.out}/cuda_replicas", f"BERT-base, 128 × 128, by GPU, {torch.cuda.get_device_name()}", lines)


if __name__ == "__main__":
    main()
