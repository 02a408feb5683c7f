"""Forms of the kernels that compute with the tensor cores, each by itself: compiled side by side, then timed."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from benchmarks.cuda_models import ragged
from benchmarks.record import save

from bei.compiler.engines.cuda import compile_kernel
from bei.cuda_plan import Function, Launch, Operand, Product
from bei.errors import EngineError
from bei.kernels import activate, attention, linear
from bei.kernels.launch import Form, KernelLaunch
from bei.runtime.cuda.batch import work_items
from bei.runtime.cuda.device import Addresses
from bei.runtime.cuda.gpu import Gpu

Line = dict[str, Any]
Attend = tuple[int, int, int, int]
Functions = Mapping[Any, Future[Function | str]]
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


def linears(bench: Bench, functions: Functions) -> Iterator[Line]:
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


def named(tile: Attend) -> str:
    return "{} queries, {} keys, {} warps, {} stages".format(*tile)


def attentions(bench: Bench, functions: Functions) -> Iterator[Line]:
    """Tiles of attention at 12 heads of 64 and of 32, texts of 128 tokens and ragged ones."""
    for head_dim in (64, 32):
        wide = 12 * head_dim
        for batch, lengths in (("128 × 128", UNIFORM), ("ragged 16 k", RAGGED)):
            rows = np.array(lengths, np.int32)
            fused, out = _random(int(rows.sum()), 3 * wide), _random(int(rows.sum()), wide)
            starts = (np.cumsum(rows) - rows).astype(np.int32)
            for tile in ATTENTION:
                function = functions[head_dim, tile].result()
                name = named(tile)
                if isinstance(function, str):
                    yield {"head dim": head_dim, "batch": batch, "form": name, "failed": function}
                    continue
                work = torch.from_numpy(work_items(starts, rows, tile[0])).cuda()
                how = attention_launch(head_dim, tile)
                views = fused, fused[:, wide:], fused[:, 2 * wide :], work, out
                took = bench.launch(how, function, {"work": len(work), "one": 1}, *views)
                yield {"head dim": head_dim, "batch": batch, "form": name, "µs": round(took, 1)}


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


def card() -> str:
    return str(torch.cuda.get_device_name())
