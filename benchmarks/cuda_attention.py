"""Forms of attention, each by itself: Hopper's tiles beside Triton's, over full batches and small ones.

python -m benchmarks.cuda_attention [--out h200] [--seconds 40]

As `benchmarks.cuda_forms`, which says how forms are compiled and timed. Needs the extra cuda and PyTorch.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

from benchmarks.cuda_forms import LONG, RAGGED, UNIFORM, Chosen, Form, compile_forms, measure_forms

from bei.kernels.hopper_attention import Tile

HEADS: dict[str, dict[str, Any]] = {
    "heads of 64": {"heads": 12, "head_dim": 64},
    "heads of 64, window 64": {"heads": 12, "head_dim": 64, "window": 64},
    "heads of 32": {"heads": 12, "head_dim": 32},
    "heads of 128, 16 : 8, causal": {"heads": 16, "kv_heads": 8, "head_dim": 128, "causal": True},
    "heads of 256, 3 : 1": {"heads": 3, "kv_heads": 1, "head_dim": 256},
}
FULL: dict[str, Sequence[int]] = {"128 × 128": UNIFORM, "ragged 16 k": RAGGED, "32 × 512": LONG}
"""Ragged ones as they come, where an engine's work list begins with the longest text."""
SMALL: dict[str, Sequence[int]] = {
    "1 × 32": [32], "4 × 128": [128] * 4, "16 × 128": [128] * 16, "1 × 512": [512], "4 × 512": [512] * 4,
}  # fmt: skip
"""Around what `bei.kernels.hopper_attention.FEW` leaves to Triton."""
TILES = {
    32: [
        Tile(queries=64, heads=2, keys=64, stages=4, blocks=2),
        Tile(queries=128, heads=2, keys=64, stages=4),
        Tile(queries=64, heads=2, keys=128, stages=3),
    ],
    64: [
        Tile(queries=128, heads=2, keys=64, stages=3, registers=False, buffers=2),
        Tile(queries=128, heads=2, keys=64, stages=4, registers=False, buffers=2),
        Tile(queries=256, heads=1, keys=64, stages=4, registers=False, buffers=2),
        Tile(queries=192, heads=1, keys=64, stages=4),
        Tile(queries=128, heads=1, keys=128, stages=3),
    ],
    128: [
        Tile(queries=128, heads=1, keys=64, stages=4),
        Tile(queries=64, heads=2, keys=64, stages=4),
        Tile(queries=64, heads=2, keys=128, stages=2),
    ],
    256: [
        Tile(queries=128, heads=1, keys=64, stages=2, registers=False),
        Tile(queries=128, heads=1, keys=48, stages=3, registers=False),
    ],
}
NARROW = [(64, 64, 4, 3), (64, 32, 4, 3), (128, 64, 8, 3)]
WIDE = [(64, 32, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2)]
"""Queries, keys, warps, stages of Triton's; for heads to 64 and for wider ones."""


def forms() -> Iterator[Form]:
    """Of each subject the module's own choice first."""
    for name, shape in HEADS.items():
        for batch, lengths in (FULL | SMALL).items():
            yield from _forms(f"{name}, {batch}", {**shape, "lengths": tuple(lengths)})


def _forms(subject: str, shape: dict[str, Any]) -> Iterator[Form]:
    spans = sum(n * min(n, 2 * shape.get("window", n) + 1) for n in shape["lengths"])
    flops = 4.0 * spans / (2 if "causal" in shape else 1) * shape["heads"] * shape["head_dim"]
    make = partial(Form, subject=subject, kernel="attention", shape=shape, flops=flops)
    yield make(name="usual")
    triton = {"hopper_attention.tile": Chosen(None)}
    yield make(name="Triton, usual", inside=triton)
    for own in TILES[shape["head_dim"]]:
        yield make(name=_words(own), inside={"hopper_attention.tile": Chosen(own)})
    for chosen in NARROW if shape["head_dim"] <= 64 else WIDE:
        inside = {**triton, "tile": Chosen(chosen), "query_block": Chosen(chosen[0])}
        yield make(name="Triton, {} queries, {} keys, {} warps, {} stages".format(*chosen), inside=inside)


def _words(t: Tile) -> str:
    heads = f" of {t.heads} heads" if t.heads > 1 else ""
    where = "in registers" if t.registers else f"{t.buffers} buffers"
    return (
        f"{t.queries} queries{heads} ({where}), {t.keys} keys, {t.stages} stages, {t.blocks} a multiprocessor"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="h200")
    parser.add_argument("--seconds", type=float, default=40)
    args = parser.parse_args()
    end = time.monotonic() + args.seconds
    pool = ProcessPoolExecutor(min(14, os.cpu_count() or 1), multiprocessing.get_context("fork"))
    measure_forms(compile_forms(pool, forms()), end, f"{args.out}/cuda_attention")
    pool.shutdown(wait=False, cancel_futures=True)


if __name__ == "__main__":
    main()
