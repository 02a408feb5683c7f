"""Which form of a kernel, and which options of a plan, are fastest on this GPU: all in one run, results as they come.

python -m benchmarks.cuda_variants [--out h200] [--seconds 60]

Kernels first (``cuda_kernels``), each by itself, ten in a graph; then whole models (``cuda_variants``), the fastest tile
among the variants. Random weights, fp16, medians of CUDA events; cosines are with fp32 on the CPU, over a few short texts. What does
not fit into the time is left out, from the end. Needs the extra cuda and PyTorch.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.cuda_engine import Timed
from benchmarks.cuda_models import Lengths, ragged, rows_of
from benchmarks.cuda_shapes import CONFIGS, EMBED, cosine, random_weights
from benchmarks.record import save

from bei.adapters.config import EncoderConfig
from bei.compiler.engines.cuda import build, compile_kernel
from bei.compiler.lowering.cuda_options import CudaOptions
from bei.compiler.lowering.torch_ops import run_torch
from bei.compiler.weights import Weights
from bei.cuda_plan import Function, Launch, Operand, Plan, Product
from bei.errors import EngineError
from bei.kernels import activate, attention, linear
from bei.kernels.launch import Form, KernelLaunch
from bei.runtime.cuda.batch import work_items
from bei.runtime.cuda.device import Addresses
from bei.runtime.cuda.gpu import Gpu

Line = dict[str, Any]
Attend = tuple[int, int, int, int]
TOKENS = 16384
UNIFORM, LONG, RAGGED = [128] * 128, [512] * 32, ragged(16005)


FORMS = [
    (128, 128, 8, 3, 0), (128, 128, 4, 3, 0), (128, 256, 8, 3, 0),
    (128, 128, 8, 2, 2), (128, 128, 8, 4, 1), (128, 128, 4, 3, 1), (64, 128, 4, 3, 2), (128, 256, 8, 3, 1),
    (256, 128, 8, 3, 1),
]  # fmt: skip
"""Of the linear kernel: rows, columns (both halves of a gate), warps, stages, programs a multiprocessor (0: no TMA)."""


def tiles(gated: bool) -> dict[str, linear.Tile]:
    """By name."""
    made = {}
    for rows, columns, warps, stages, programs in FORMS:
        width = columns // 2 if gated else columns
        name = f"{rows}×{width}×64, {warps} warps, {stages} stages" + (
            f", TMA {programs}" if programs else ""
        )
        made[name] = linear.Tile(
            rows=rows, columns=width, features=64, warps=warps, stages=stages, programs=programs
        )
    return made


@dataclass(frozen=True, kw_only=True, slots=True)
class Up:
    """The first product of an MLP, with its activation."""

    name: str
    dim: int
    ffn: int
    act: activate.Act
    gated: bool

    @property
    def wide(self) -> int:
        return self.ffn * (1 + self.gated)

    def forms(self) -> dict[str, Form | None]:
        """Of `linear`'s operands."""
        f16 = partial(_form, "f16")
        weight, bias = f16(self.dim), None if self.gated else f16(self.wide)
        return {
            "x": f16(self.dim),
            "weight": weight,
            "bias": bias,
            "order": None,
            "groups": None,
            "out": f16(self.ffn),
        }


UPS = (
    Up(name="bert-base", dim=768, ffn=3072, act="gelu", gated=False),
    Up(name="minilm-l6", dim=384, ffn=1536, act="gelu", gated=False),
    Up(name="bert-large", dim=1024, ffn=4096, act="gelu", gated=False),
    Up(name="nomic-v1.5", dim=768, ffn=3072, act="silu", gated=True),
    Up(name="modernbert-base", dim=768, ffn=1152, act="gelu", gated=True),
)
ATTENTION = [
    (64, 64, 4, 3), (64, 64, 4, 2), (64, 128, 4, 2), (64, 32, 4, 3), (128, 64, 4, 3), (128, 64, 8, 3), (128, 64, 8, 2),
    (128, 128, 8, 2), (128, 128, 4, 2), (128, 32, 4, 3),
]  # fmt: skip
"""Queries, keys, warps, stages; the first is what head_dim 64 uses, (64, 32, 4, 3) head_dim 32."""


def _form(dtype: Any, width: int, stride: int = 0) -> Form:
    return Form(dtype=dtype, width=width, stride=stride or width)


def linear_launch(up: Up, tile: linear.Tile) -> KernelLaunch:
    """`linear` in one form."""
    with patch.object(linear, "tile", lambda sm, **_: tile):
        return linear.plan(up.forms(), sm=SM, act=up.act, gated=up.gated, transposed=False, rows="tokens")


def attention_launch(head_dim: int, tile: Attend) -> KernelLaunch:
    """`attention` of 12 heads over a fused q, k, v."""
    wide = 12 * head_dim
    part, out = _form("f16", wide, 3 * wide), _form("f16", wide)
    forms = {"q": part, "k": part, "v": part, "work": _form("i32", 4), "bias": None, "out": out}
    with patch.object(attention, "tile", lambda sm, head_dim, **_: tile):
        return attention.plan(
            forms, sm=SM, heads=12, kv_heads=12, head_dim=head_dim, scale=head_dim**-0.5, causal=False, window=None,
            softcap=None, bias_kind=None,
        )  # fmt: skip


def activate_launch(up: Up) -> KernelLaunch:
    """`activate` on a product's output."""
    part = _form("f16", up.ffn, up.wide)
    forms = {"x": part, "up": part if up.gated else None, "out": _form("f16", up.ffn)}
    return activate.plan(forms, sm=SM, act=up.act, rows="tokens")


def compiled(make: Callable[..., KernelLaunch], *arguments: Any) -> Function | str:
    """In a worker: machine code, or why there is none."""
    try:
        return compile_kernel(make(*arguments), SM)
    except EngineError as error:
        return str(error)[:120]


SM = 90


class Bench:
    """Kernels on PyTorch's memory, launched and timed as the engine does it."""

    def __init__(self) -> None:
        self.gpu = Gpu("benchmark")
        self.count = 0

    def launch(
        self, how: KernelLaunch, function: Function, sizes: Mapping[str, int], *tensors: torch.Tensor
    ) -> float:
        """Microseconds."""
        self.count += 1
        name = f"f{self.count}"
        self.gpu.load({name: function})
        step = Launch(op="", attrs={}, operands={}, writes=(), function=name, grid=how.grid, sizes=how.sizes)
        addresses = [tensor.data_ptr() for tensor in tensors]
        return self.microseconds(lambda: self.gpu.launch(step, addresses, sizes))

    def microseconds(self, work: Callable[[], None], repeats: int = 12) -> float:
        """Median of ten in a graph."""
        torch.cuda.synchronize()

        def ten() -> None:
            for _ in range(10):
                work()

        graph = self.gpu.capture(ten)
        times = []
        for _ in range(repeats):
            start = self.gpu.timer()
            self.gpu.replay(graph)
            times.append(self.gpu.elapsed(start, self.gpu.timer()))
        self.gpu.forget(graph)
        return 100 * statistics.median(times[2:])


def _random(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, device="cuda") * scale).half()


def linears(bench: Bench, functions: "Functions") -> Iterator[Line]:
    """Every form of every MLP's first product, and cuBLASLt with a kernel after it; errors against PyTorch in fp32."""
    for up in UPS:
        x, weight, bias = (
            _random(TOKENS, up.dim),
            _random(up.wide, up.dim, scale=up.dim**-0.5),
            _random(up.wide),
        )
        out, hidden = torch.zeros(TOKENS, up.ffn, device="cuda").half(), _random(TOKENS, up.wide)
        first = [x, weight] if up.gated else [x, weight, bias]
        flops = 2 * TOKENS * up.dim * up.wide / 1e6
        want = x[:512].float() @ weight.float().T + (0 if up.gated else bias.float())
        gate, rest = (want[:, : up.ffn], want[:, up.ffn :]) if up.gated else (want, torch.ones_like(want))
        want = (torch.nn.functional.silu(gate) if up.act == "silu" else torch.nn.functional.gelu(gate)) * rest

        def line(what: str, took: float, flops: float = flops, up: Up = up) -> Line:
            return {"model": up.name, "form": what, "µs": round(took, 1), "TFLOP/s": round(flops / took)}

        product = _product(up)
        at = Addresses(
            x=x.data_ptr(), weight=weight.data_ptr(), bias=0 if up.gated else bias.data_ptr(), add=0,
            out=hidden.data_ptr(),
        )  # fmt: skip
        alone = bench.microseconds(partial(bench.gpu.multiply, product, at, TOKENS))
        how, function = activate_launch(up), functions[up, "activate"].result()
        assert isinstance(function, Function)
        parts = [hidden, hidden[:, up.ffn :], out] if up.gated else [hidden, out]
        after = bench.launch(how, function, {"tokens": TOKENS, "one": 1}, *parts)
        yield line("cuBLASLt", alone)
        yield line("cuBLASLt + activate", alone + after)
        for name, tile in tiles(up.gated).items():
            function = functions[up, name].result()
            if isinstance(function, str):
                yield {"model": up.name, "form": name, "failed": function}
                continue
            out.fill_(torch.nan)
            took = bench.launch(linear_launch(up, tile), function, {"tokens": TOKENS, "one": 1}, *first, out)
            wrong = float((out[:512].float() - want).abs().max())
            yield line(name, took) | {"max error": round(wrong, 4), "finite": bool(out.isfinite().all())}


def _product(up: Up) -> Product:
    def operand(name: str, width: int) -> Operand:
        return Operand(place="arena", name=name, rows="tokens", dtype="f16", width=width, stride=width)

    bias = None if up.gated else operand("bias", up.wide)
    return Product(
        x=operand("x", up.dim), weight=operand("w", up.dim), bias=bias, out=operand("out", up.wide)
    )


def _named(tile: Attend) -> str:
    return "{} queries, {} keys, {} warps, {} stages".format(*tile)


def attentions(bench: Bench, functions: "Functions") -> Iterator[Line]:
    """Tiles of attention at 12 heads of 64 and of 32, texts of 128 tokens and ragged ones."""
    for head_dim in (64, 32):
        wide = 12 * head_dim
        for batch, lengths in (("128 × 128", UNIFORM), ("ragged 16 k", RAGGED)):
            rows = np.array(lengths, np.int32)
            fused, out = _random(int(rows.sum()), 3 * wide), _random(int(rows.sum()), wide)
            starts = (np.cumsum(rows) - rows).astype(np.int32)
            for tile in ATTENTION:
                function = functions[head_dim, tile].result()
                name = _named(tile)
                if isinstance(function, str):
                    yield {"head dim": head_dim, "batch": batch, "form": name, "failed": function}
                    continue
                work = torch.from_numpy(work_items(starts, rows, tile[0])).cuda()
                how = attention_launch(head_dim, tile)
                views = fused, fused[:, wide:], fused[:, 2 * wide :], work, out
                took = bench.launch(how, function, {"work": len(work), "one": 1}, *views)
                yield {"head dim": head_dim, "batch": batch, "form": name, "µs": round(took, 1)}


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


Functions = Mapping[Any, Future[Function | str]]


def compile_forms(pool: ProcessPoolExecutor) -> Functions:
    """Every form of every kernel, under way."""
    functions: dict[Any, Future[Function | str]] = {}
    for up in UPS:
        functions[up, "activate"] = pool.submit(compiled, activate_launch, up)
        for name, tile in tiles(up.gated).items():
            functions[up, name] = pool.submit(compiled, linear_launch, up, tile)
    for head_dim in (64, 32):
        for shape in ATTENTION:
            functions[head_dim, shape] = pool.submit(compiled, attention_launch, head_dim, shape)
    return functions


def measure_forms(functions: Functions, end: float, out: str) -> tuple[list[Line], list[Line]]:
    """Lines of `linears` and `attentions`, as many as there is time for."""
    bench = Bench()
    results: tuple[list[Line], list[Line]] = ([], [])
    for measure, lines in zip((linears, attentions), results, strict=True):
        for line in measure(bench, functions):
            lines.append(line)
            print(line, flush=True)
            if time.monotonic() > end:
                break
        save(
            f"{out}/cuda_kernels",
            f"Forms of kernels, {TOKENS} tokens, fp16, {card()}",
            [*results[0], *results[1]],
        )
    bench.gpu.close()
    return results


def choose(forms: Sequence[Line], heads: Sequence[Line]) -> list[Variant]:
    """Variants with the fastest forms in them."""
    best: dict[str, linear.Tile] = {}
    attends: dict[int, Attend] = {}
    for up in UPS:
        if found := fastest([line for line in forms if "max error" in line], "model", up.name):
            best[up.name] = tiles(up.gated)[found["form"]]
    for head_dim in (64, 32):
        if found := fastest([line for line in heads if line["batch"] == "128 × 128"], "head dim", head_dim):
            attends[head_dim] = next(tile for tile in ATTENTION if _named(tile) == found["form"])
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


def card() -> str:
    return str(torch.cuda.get_device_name())


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
