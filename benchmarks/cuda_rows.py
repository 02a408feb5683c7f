"""The two sets of steps for large batches, with norms inside products and apart from them, by the tokens of a batch.

python -m benchmarks.cuda_rows [--out h100] [--models minilm-l6 …]

Random weights, fp16, texts of 128 tokens; the better of two medians of graph replays. ``full``: what share of the rows that the
GPU's clusters compute in whole waves are the batch's own (`bei.compiler.lowering.cuda_rows`). Needs the extra cuda and PyTorch.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from benchmarks.cubins import build, origin
from benchmarks.cuda_engine import Timed
from benchmarks.cuda_shapes import CONFIGS, EMBED, random_weights
from benchmarks.record import save

from bei.compiler.lowering.cuda_options import CudaOptions, Stream
from bei.cuda_plan import Waves

Line = dict[str, Any]
MODELS = ("minilm-l6", "bert-base", "embeddinggemma")
TEXTS = (33, 48, 58, 64, 66, 80, 100, 110, 116, 124, 128, 132, 150, 180, 198, 264, 400)


def measure(model: str, folder: Path) -> Iterator[Line]:
    """A line a batch size."""
    cfg = CONFIGS[model]
    stream: Stream | None = None if cfg.placement == "post" else "f16"
    plan = build(cfg, EMBED, random_weights(cfg, folder), CudaOptions(sm=90, stream=stream))
    general, large, rows = plan.schedules
    waves = rows.waves
    assert waves is not None
    ways = {
        name: Timed(msgspec.structs.replace(plan, schedules=(general, steps)), folder)
        for name, steps in (("apart", large), ("inside", msgspec.structs.replace(rows, waves=None)))
    }
    clusters = ways["inside"].gpu.clusters(waves.function)
    for texts in TEXTS:
        lengths = [128] * texts
        ms = {name: min(timed.device_ms(lengths) for _ in range(2)) for name, timed in ways.items()}
        yield {
            "model": model, "tokens": 128 * texts, "full": round(_full(waves, clusters, 128 * texts), 3),
            **{f"{name}, ms": round(value, 3) for name, value in ms.items()},
            "times faster": round(ms["apart"] / ms["inside"], 3),
        }  # fmt: skip
    for timed in ways.values():
        timed.engine.close()


def _full(waves: Waves, clusters: int, tokens: int) -> float:
    wave = waves.rows * clusters
    return tokens / (-(-tokens // wave) * wave)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="h100")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    args = parser.parse_args()
    lines: list[Line] = []
    for model in args.models:
        with tempfile.TemporaryDirectory() as temporary:
            for line in measure(model, Path(temporary)):
                lines.append(line)
                print(line, flush=True)
    what = f"Norms inside products and apart, by tokens, fp16, {torch.cuda.get_device_name()}, {origin()}"
    save(f"{args.out}/cuda_rows", what, lines)


if __name__ == "__main__":
    main()
