"""Which form of a kernel, and which options of a plan, are fastest on this GPU: all in one run, results as they come.

python -m benchmarks.cuda_variants [--out h200] [--seconds 60]

Kernels first (``cuda_kernels``), each by itself, ten in a graph; then whole models (``cuda_variants``), the fastest tile
among the variants. Random weights, fp16, medians of CUDA events; cosines are with fp32 on the CPU, over a few short texts. What does
not fit into the time is left out, from the end. Needs the extra cuda and PyTorch.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.cubins import SM, build, origin
from benchmarks.cuda_engine import Timed
from benchmarks.cuda_forms import (
    LONG,
    RAGGED,
    UNIFORM,
    UPS,
    Form,
    Line,
    card,
    compile_forms,
    fastest,
    forms,
    measure_forms,
)
from benchmarks.cuda_models import Lengths, rows_of
from benchmarks.cuda_shapes import CONFIGS, EMBED, cosine, random_weights
from benchmarks.record import save

from bei.adapters.config import EncoderConfig
from bei.compiler.lowering.cuda_options import CudaOptions
from bei.compiler.lowering.torch_ops import run_torch
from bei.compiler.weights import Weights
from bei.cuda_plan import Plan
from bei.errors import EngineError
from bei.kernels import hopper, hopper_attention


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """Options of a plan, with forms of kernels in the place of the usual ones."""

    model: str
    name: str
    options: CudaOptions = field(default_factory=lambda: CudaOptions(sm=SM))
    form: hopper.Tile | None = None
    own_attention: bool = True


def planned(variant: Variant, weights: Weights) -> Plan:
    """In a worker: the plan with its machine code."""
    with ExitStack() as stack:
        if (form := variant.form) is not None:
            stack.enter_context(patch.object(hopper, "tile", lambda **_: form))
        if not variant.own_attention:
            stack.enter_context(patch.object(hopper_attention, "tile", lambda **_: None))
        return build(CONFIGS[variant.model], EMBED, weights, variant.options)


EXPERTS: tuple[Literal["dense", "grouped"], ...] = ("dense", "grouped")
PROBE = rows_of([3, 40, 130])


def reference(cfg: EncoderConfig, weights: Weights) -> npt.NDArray[np.float32]:
    """In a worker: `PROBE`'s vectors in fp32, on the CPU."""
    torch.set_num_threads(4)
    longest = max(row.ids.size for row in PROBE)
    ids, mask = (torch.zeros(len(PROBE), longest, dtype=torch.int64) for _ in range(2))
    for line, row in enumerate(PROBE):
        ids[line, : row.ids.size] = torch.from_numpy(row.ids.astype(np.int64))
        mask[line, : row.ids.size] = 1
    return np.asarray(run_torch(cfg, EMBED, weights, ids, mask))


def variants(best: Mapping[str, hopper.Tile]) -> list[Variant]:
    """The most telling first."""
    plain, fused = (CudaOptions(sm=SM, fuse_activation=fuse) for fuse in (False, True))
    made: list[Variant] = []
    for model in CONFIGS:
        if any(layer.moe for layer in CONFIGS[model].layers):
            made += [
                Variant(model=model, name=experts, options=replace(fused, experts=experts))
                for experts in EXPERTS
            ]
            continue
        tile = best.get(model)
        made += [
            Variant(model=model, name="plain", options=plain),
            Variant(model=model, name="fused activation", options=fused),
            Variant(model=model, name="the same, attention by Triton", options=fused, own_attention=False),
        ]
        if tile:
            made.append(Variant(model=model, name="fastest tile", options=fused, form=tile))
        if CONFIGS[model].placement == "post":
            made.append(Variant(model=model, name="tanh", options=replace(plain, gelu="tanh")))
        else:
            made.append(Variant(model=model, name="fp16 stream", options=replace(fused, stream="f16")))
    return made


def measured(variant: Variant, plan: Plan, folder: Path, expected: npt.NDArray[np.float32]) -> Iterator[Line]:
    """One line a batch; ``expected`` as `reference` gives it."""
    timed = Timed(plan, folder)
    least = round(cosine(np.asarray(timed.engine.run(PROBE)), expected), 7)
    short = CONFIGS[variant.model].positions > 0
    batches: dict[str, Lengths] = {
        "128 × 128" if short else "32 × 512": UNIFORM if short else LONG,
        "ragged 16 k": RAGGED,
    }
    for batch, lengths in batches.items():
        ms = timed.device_ms(lengths)
        yield {
            "model": variant.model, "plan": variant.name, "batch": batch, "ms": round(ms, 3),
            "M tokens/s": round(sum(lengths) / ms / 1e3, 3), "cosine min": least,
        }  # fmt: skip
    timed.engine.close()


def choose(results: Sequence[tuple[Form, Line]]) -> list[Variant]:
    """Variants with the fastest forms in them, where those are not the usual ones."""
    found = {up.name: fastest(results, up.name) for up in UPS}
    best = {
        name: how.inside["hopper.tile"].value
        for name, how in found.items()
        if how and "hopper.tile" in how.inside
    }
    print(best, flush=True)
    return variants(best)


def measure_plans(pool: ProcessPoolExecutor, chosen: Sequence[Variant], end: float, out: str) -> None:
    """Lines of `measured`, as many as there is time for."""
    lines: list[Line] = []
    weights: dict[str, Weights] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for model in dict.fromkeys(variant.model for variant in chosen):
            folder = Path(temporary) / model
            folder.mkdir()
            weights[model] = random_weights(CONFIGS[model], folder)
        expected = {model: pool.submit(reference, CONFIGS[model], part) for model, part in weights.items()}
        plans = [pool.submit(planned, variant, weights[variant.model]) for variant in chosen]
        for variant, plan in zip(chosen, plans, strict=True):
            if time.monotonic() > end:
                print(f"out of time before {variant.model}, {variant.name}", flush=True)
                break
            try:
                for line in measured(
                    variant, plan.result(), Path(temporary) / variant.model, expected[variant.model].result()
                ):
                    lines.append(line)
                    print(line, flush=True)
            except EngineError as error:  # one variant that fails must not cost the others
                lines.append({"model": variant.model, "plan": variant.name, "failed": str(error)[:200]})
                print(lines[-1], flush=True)
            save(
                f"{out}/cuda_variants",
                f"Options of a plan, device milliseconds, fp16, {card()}, {origin()}",
                lines,
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="h200")
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    start = time.monotonic()
    pool = ProcessPoolExecutor(min(14, os.cpu_count() or 1), multiprocessing.get_context("fork"))
    # The workers start here, before CUDA does: it does not survive a fork.
    functions = compile_forms(pool, forms())
    results = measure_forms(functions, start + args.seconds / 2, f"{args.out}/cuda_kernels")
    measure_plans(pool, choose(results), start + args.seconds, args.out)
    pool.shutdown(wait=False, cancel_futures=True)


if __name__ == "__main__":
    main()
