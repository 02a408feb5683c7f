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
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.cuda_engine import Timed
from benchmarks.cuda_forms import (
    ATTENTION,
    LONG,
    RAGGED,
    SM,
    UNIFORM,
    UPS,
    Attend,
    Line,
    card,
    compile_forms,
    measure_forms,
    named,
    tiles,
)
from benchmarks.cuda_models import Lengths, rows_of
from benchmarks.cuda_shapes import CONFIGS, EMBED, cosine, random_weights
from benchmarks.record import save

from bei.adapters.config import EncoderConfig
from bei.compiler.engines.cuda import build
from bei.compiler.lowering.cuda_options import CudaOptions
from bei.compiler.lowering.torch_ops import run_torch
from bei.compiler.weights import Weights
from bei.cuda_plan import Plan
from bei.errors import EngineError
from bei.kernels import attention, linear


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """Options of a plan, with forms of kernels in the place of the usual ones."""

    model: str
    name: str
    options: CudaOptions = field(default_factory=lambda: CudaOptions(sm=SM))
    form: linear.Tile | None = None
    block: Attend | None = None


def planned(variant: Variant, weights: Weights) -> Plan:
    """In a worker: the plan with its machine code."""
    usual = linear.tile
    with ExitStack() as stack:
        if (form := variant.form) is not None:
            replaced = lambda sm, grouped, **rest: usual(sm, grouped=True, **rest) if grouped else form
            stack.enter_context(patch.object(linear, "tile", replaced))
        if (block := variant.block) is not None:
            stack.enter_context(patch.object(attention, "tile", lambda sm, head_dim, **_: block))
            stack.enter_context(patch.object(attention, "query_block", lambda sm, head_dim: block[0]))
        return build(CONFIGS[variant.model], EMBED, weights, variant.options)


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


def variants(best: Mapping[str, linear.Tile], attends: Mapping[int, Attend]) -> list[Variant]:
    """The most telling first."""
    plain, fused = CudaOptions(sm=SM), CudaOptions(sm=SM, fuse_activation=True)
    both, sums = replace(fused, fuse_residual=True), replace(plain, fuse_residual=True)
    made = []
    for model in ("bert-base", "minilm-l6", "bert-large"):
        tile, attend = best.get(model), attends.get(CONFIGS[model].head_dim)
        made += [
            Variant(model=model, name="plain"),
            Variant(model=model, name="fused activation", options=fused, form=tile),
            Variant(model=model, name="fused residual", options=sums),
            Variant(model=model, name="both", options=both, form=tile),
            Variant(model=model, name="both + attention tile", options=both, form=tile, block=attend),
            Variant(model=model, name="tanh", options=replace(plain, gelu="tanh")),
            Variant(model=model, name="tanh, fused residual", options=replace(sums, gelu="tanh")),
        ]
    made += [
        Variant(model="nomic-v2-moe", name="plain"),
        Variant(model="nomic-v2-moe", name="dense experts", options=replace(plain, experts="dense")),
    ]
    for model in ("modernbert-base", "nomic-v1.5"):
        tile = best.get(model)
        made += [
            Variant(model=model, name="plain"),
            Variant(model=model, name="fused activation", options=fused, form=tile),
            Variant(model=model, name="both", options=both, form=tile),
            Variant(model=model, name="both, fp16 stream", options=replace(both, stream="f16"), form=tile),
        ]
    return made


def measured(variant: Variant, plan: Plan, folder: Path, expected: npt.NDArray[np.float32]) -> Iterator[Line]:
    """One line a batch; ``expected`` as `reference` gives it."""
    timed = Timed(plan, folder)
    least = round(cosine(np.asarray(timed.engine.run(PROBE)), expected), 7)
    short = variant.model in ("bert-base", "minilm-l6", "bert-large")
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


def fastest(lines: Sequence[Line], key: str, value: Any) -> Line | None:
    """The quickest right form."""
    right = [line for line in lines if line.get(key) == value and "µs" in line and line.get("finite", True)]
    return min(right, key=lambda line: float(line["µs"]), default=None)


def choose(forms: Sequence[Line], heads: Sequence[Line]) -> list[Variant]:
    """Variants with the fastest forms in them."""
    best: dict[str, linear.Tile] = {}
    attends: dict[int, Attend] = {}
    for up in UPS:
        if found := fastest([line for line in forms if "max error" in line], "model", up.name):
            best[up.name] = tiles(up.gated)[found["form"]]
    for head_dim in (64, 32):
        if found := fastest([line for line in heads if line["batch"] == "128 × 128"], "head dim", head_dim):
            attends[head_dim] = next(tile for tile in ATTENTION if named(tile) == found["form"])
    print(best, attends, flush=True)
    return variants(best, attends)


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
            save(f"{out}/cuda_variants", f"Options of a plan, device milliseconds, fp16, {card()}", lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="h200")
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    start = time.monotonic()
    pool = ProcessPoolExecutor(min(14, os.cpu_count() or 1), multiprocessing.get_context("fork"))
    functions = compile_forms(pool)  # the workers start here, before CUDA does: it does not survive a fork
    forms, heads = measure_forms(functions, start + args.seconds / 2, args.out)
    measure_plans(pool, choose(forms, heads), start + args.seconds, args.out)
    pool.shutdown(wait=False, cancel_futures=True)


if __name__ == "__main__":
    main()
