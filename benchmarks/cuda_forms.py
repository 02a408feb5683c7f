"""Forms of the kernels, each by itself: compiled side by side in worker processes, then timed ten in a graph.

A form is what a kernel module leaves open: a tile, warps, stages. It is put in the place of the module's own choice.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from benchmarks.cubins import SM, function, origin
from benchmarks.cuda_models import ragged
from benchmarks.record import save

from bei.cuda_plan import Function, Operand, Product
from bei.errors import EngineError
from bei.kernels import hopper, linear, linear_norm
from bei.kernels.activate import Act
from bei.kernels.launch import KernelLaunch, Sample, form, step
from bei.runtime.cuda.device import Addresses
from bei.runtime.cuda.gpu import Gpu

Line = dict[str, Any]
Functions = Mapping["Form", "Future[Function | str]"]
TOKENS = 16384
UNIFORM, LONG, RAGGED = [128] * 128, [512] * 32, ragged(16005)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Answers every question with ``value``: stands in for a module's ``tile``; a lambda could not reach a worker."""

    value: Any

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self.value


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Form:
    """One form of one kernel on one shape: ``shape`` as the module's `make_inputs` takes it, ``inside`` what replaces names
    of the module (or of one that it imports, with a dot); ``flops`` it computes."""

    subject: str
    name: str
    kernel: str
    shape: Mapping[str, Any]
    inside: Mapping[str, Any] = field(default_factory=dict)
    flops: float = 0.0

    @contextmanager
    def put_in(self) -> Iterator[Any]:
        """The kernel's module with this form in it."""
        module = import_module(f"bei.kernels.{self.kernel}")
        with ExitStack() as stack:
            for path, value in self.inside.items():
                inner, _, name = path.rpartition(".")
                stack.enter_context(patch.object(getattr(module, inner) if inner else module, name, value))
            yield module

    def sample(self, device: str) -> Sample:
        """Operands in fp16; on the device "meta" they have no values."""
        with self.put_in() as module:
            made: Sample = module.make_inputs(self.shape, device=device, dtype=torch.float16, sm=SM)
        keep = self.shape.get("keep")
        if keep is None:
            return made
        operands = {name: _kept(name, x, keep) for name, x in made.operands.items()}
        return Sample(operands=operands, writes=made.writes, sizes=made.sizes, attrs=made.attrs)

    def launch(self, sample: Sample) -> KernelLaunch:
        """As the module plans it, in this form."""
        forms = {name: form(tensor) for name, tensor in sample.operands.items()}
        with self.put_in() as module:
            planned: KernelLaunch = module.plan(forms, sm=SM, **sample.attrs)
        return planned


def _kept(name: str, x: "torch.Tensor | None", keep: Mapping[str, torch.dtype]) -> "torch.Tensor | None":
    """`add_norm` as an engine calls it: the operands in ``keep`` in the type given there, weight and bias as they are."""
    if x is None or name in ("weight", "bias"):
        return x
    return x.to(keep[name]) if name in keep else None


# --- the forms


@dataclass(frozen=True, kw_only=True, slots=True)
class Up:
    """The first product of an MLP, with its activation."""

    name: str
    dim: int
    ffn: int
    act: Act
    gated: bool

    @property
    def wide(self) -> int:
        return self.ffn * (1 + self.gated)

    @property
    def shape(self) -> dict[str, Any]:
        return {
            "R": TOKENS, "K": self.dim, "N": self.ffn, "act": self.act, "gated": self.gated, "bias": not self.gated,
        }  # fmt: skip


UPS = (
    Up(name="bert-base", dim=768, ffn=3072, act="gelu", gated=False),
    Up(name="minilm-l6", dim=384, ffn=1536, act="gelu", gated=False),
    Up(name="bert-large", dim=1024, ffn=4096, act="gelu", gated=False),
    Up(name="nomic-v1.5", dim=768, ffn=3072, act="silu", gated=True),
    Up(name="modernbert-base", dim=768, ffn=1152, act="gelu", gated=True),
    Up(name="qwen3-0.6b", dim=1024, ffn=3072, act="silu", gated=True),
    Up(name="embeddinggemma", dim=768, ffn=1152, act="gelu_tanh", gated=True),
)
PLAIN = {
    "bert-base, q, k, v": (768, 2304), "bert-base, out": (768, 768), "bert-base, down": (3072, 768),
    "minilm-l6, q, k, v": (384, 1152), "minilm-l6, out": (384, 384), "minilm-l6, down": (1536, 384),
    "bert-large, q, k, v": (1024, 3072), "bert-large, out": (1024, 1024), "bert-large, down": (4096, 1024),
    "modernbert-base, down": (1152, 768), "qwen3-0.6b, q, k, v": (1024, 4096), "qwen3-0.6b, out": (2048, 1024),
    "qwen3-0.6b, down": (3072, 1024),
}  # fmt: skip
"""Products without an activation: features in and out. Where out is the stream's, the residual can be added."""
HOPPER = {
    "128×192, in turn": hopper.Tile(columns=192, stages=4),
    "128×128, in turn": hopper.Tile(columns=128, stages=5),
    "128×256, together": hopper.Tile(columns=256, stages=4, together=True),
}
LINEAR = [(128, 256, 8, 3), (128, 128, 8, 3)]
"""Of Triton's form: rows, columns (both halves of a gate), warps, stages."""
FEW = [(32, 32, 128, 4, 4), (64, 64, 64, 4, 5), (128, 128, 64, 8, 3), (128, 256, 64, 8, 3)]
"""For small batches: rows, columns, features, warps, stages."""
ROTATED: dict[str, dict[str, Any]] = {
    "12 : 12 heads of 64": {"N": 12, "K": 12, "H": 64, "P": 64},
    "16 : 8 heads of 128, normed": {"N": 16, "K": 8, "H": 128, "P": 128, "kind": "rms"},
    "3 : 1 heads of 256, normed": {"N": 3, "K": 1, "H": 256, "P": 256, "kind": "rms"},
}
ROPE = [(4, 8), (2, 16), (4, 16), (12, 4)]
"""Heads and tokens of a program."""
F16, F32 = torch.float16, torch.float32
NORMS: dict[str, tuple[int, Mapping[str, torch.dtype]]] = {
    "768, after": (768, {"x": F16, "a": F16, "half": F16}),
    "384, after": (384, {"x": F16, "a": F16, "half": F16}),
    "1024, after": (1024, {"x": F16, "a": F16, "half": F16}),
    "768, before, fp32 stream": (768, {"x": F32, "a": F16, "half": F16, "total": F32}),
    "768, before, fp16 stream": (768, {"x": F16, "a": F16, "half": F16, "total": F16}),
    "1024, before, fp32 stream": (1024, {"x": F32, "a": F16, "half": F16, "total": F32}),
}
ROWS = [(1, 1), (2, 2), (4, 4), (1, 4)]
"""Rows and warps of a program of `add_norm`."""


def forms() -> Iterator[Form]:
    """The most telling first; of each subject, the module's own choice first."""
    for up in UPS:
        yield from _with_activation(up)
    for subject, (dim, out) in PLAIN.items():
        yield from _plain(subject, dim, out)
    for up, rows in product(UPS[:2], (32, 128, 512, 1024, 2048)):
        yield from _few(up, rows)
    for subject, shape in ROTATED.items():
        yield from _rope(subject, shape)
    for subject, (width, keep) in NORMS.items():
        yield from _norm(subject, width, keep)
    for up in UPS:
        shape = {"R": TOKENS, "F": up.ffn, "act": up.act, "gated": up.gated}
        yield Form(subject=f"activate, {up.name}", name="usual", kernel="activate", shape=shape)


def _with_activation(up: Up) -> Iterator[Form]:
    flops = 2.0 * TOKENS * up.dim * up.wide
    make = partial(Form, subject=up.name, kernel="linear", shape=up.shape, flops=flops)
    yield make(name="usual")
    for name, own in HOPPER.items():
        if not (up.gated and own.together):
            yield make(name=name, inside={"hopper.tile": Chosen(own)})
    for rows, columns, warps, stages in LINEAR:
        width = columns // 2 if up.gated else columns
        tile = linear.Tile(rows=rows, columns=width, features=64, warps=warps, stages=stages)
        yield make(name=f"Triton, {_words(tile)}", inside=_triton(tile))


def _plain(subject: str, dim: int, out: int) -> Iterator[Form]:
    shape = {"R": TOKENS, "K": dim, "N": out, "act": "identity", "gated": False}
    make = partial(Form, subject=subject, kernel="linear", flops=2.0 * TOKENS * dim * out)
    yield make(name="usual", shape=shape)
    for name, own in HOPPER.items():
        yield make(name=name, shape=shape, inside={"hopper.tile": Chosen(own)})
    if out <= dim:
        yield make(name="usual, with the residual", shape={**shape, "residual": True})
    if out in linear_norm.TILES and out <= dim:
        yield from _with_norm(subject, dim, out)


def _with_norm(subject: str, dim: int, out: int) -> Iterator[Form]:
    """Beside what it replaces: the usual product and `add_norm`, after and before a norm, and twice in a sandwich."""
    make = partial(Form, subject=subject, kernel="linear_norm", flops=2.0 * TOKENS * dim * out)
    shape = {"R": TOKENS, "K": dim, "N": out, "kind": "layer"}
    yield make(name="with the residual and its norm", shape=shape)
    yield make(name="the same, the sum stored", shape={**shape, "total": True})
    sandwich = {"kind": "rms", "bias": False, "shift": False, "inner": True, "total": True}
    yield make(name="between two norms", shape={**shape, **sandwich})


def _few(up: Up, rows: int) -> Iterator[Form]:
    subject, flops = f"{up.name}, {rows} tokens", 2.0 * rows * up.dim * up.wide
    make = partial(Form, subject=subject, kernel="linear", shape={**up.shape, "R": rows}, flops=flops)
    yield make(name="hopper", inside={"hopper.tile": Chosen(hopper.Tile(columns=192, stages=4))})
    for m, n, k, warps, stages in FEW:
        tile = linear.Tile(rows=m, columns=n, features=k, warps=warps, stages=stages)
        yield make(name=f"Triton, {_words(tile)}", inside=_triton(tile))


def _words(tile: linear.Tile) -> str:
    return f"{tile.rows}×{tile.columns}×{tile.features}, {tile.warps} warps, {tile.stages} stages"


def _triton(tile: linear.Tile) -> dict[str, Chosen]:
    return {"hopper.fits": Chosen(False), "tile": Chosen(tile)}


def _rope(subject: str, shape: dict[str, Any]) -> Iterator[Form]:
    make = partial(Form, subject=f"rope, {subject}", kernel="rope", shape={**shape, "lengths": tuple(LONG)})
    for heads, tokens in ROPE:
        inside = {"HEADS_A_PROGRAM": heads, "TOKENS_A_PROGRAM": tokens}
        yield make(name=f"{heads} heads, {tokens} tokens", inside=inside)


def _norm(subject: str, width: int, keep: Mapping[str, torch.dtype]) -> Iterator[Form]:
    shape = {"R": TOKENS, "D": width, "kind": "layer", "bias": True, "sum": True, "keep": keep}
    make = partial(Form, subject=f"add_norm, {subject}", kernel="add_norm", shape=shape)
    yield make(name="usual")
    for rows, warps in ROWS:
        yield make(name=f"{rows} rows, {warps} warps", inside={"tile": Chosen((rows, warps))})


def compiled(how: Form) -> Function | str:
    """In a worker: machine code, or why there is none."""
    try:
        return function(how.launch(how.sample("meta")))
    except EngineError as error:
        return str(error)[:120]


def compile_forms(pool: ProcessPoolExecutor, chosen: Iterable[Form]) -> Functions:
    """Each, under way."""
    return {each: pool.submit(compiled, each) for each in chosen}


# --- their times


class Bench:
    """Kernels on PyTorch's memory, launched and timed as the engine does it."""

    def __init__(self) -> None:
        self.gpu = Gpu("benchmark")
        self.count = 0

    def form(self, how: Form, made: Function) -> Line:
        """Time, rates, and whether every value that it wrote is finite."""
        sample = how.sample("cuda")
        planned = how.launch(sample)
        self.count += 1
        name = f"f{self.count}"
        self.gpu.load({name: made})
        launch = step(how.kernel, planned, sample.operands, name)
        tensors = [tensor for tensor in sample.operands.values() if tensor is not None]
        addresses = [tensor.data_ptr() for tensor in tensors]
        sizes = {"one": 1, **sample.sizes}
        took = self.microseconds(lambda: self.gpu.launch(launch, addresses, sizes))
        moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        written = [sample.operands[one] for one in sample.writes]
        right = all(bool(one.isfinite().all()) for one in written if one is not None)
        line: Line = {"kernel": how.subject, "form": how.name, "µs": round(took, 1)}
        line |= (
            {"TFLOP/s": round(how.flops / took / 1e6)} if how.flops else {"GB/s": round(moved / took / 1e3)}
        )
        return line | {"finite": right}

    def product(self, name: str, dim: int, wide: int, *, bias: bool) -> Line:
        """cuBLASLt's product alone, for what `linear` computes with its activation."""

        def operand(name: str, width: int) -> Operand:
            return Operand(place="arena", name=name, rows="tokens", dtype="f16", width=width, stride=width)

        x, weight, row, out = (
            torch.randn(shape, device="cuda").half()
            for shape in ((TOKENS, dim), (wide, dim), (wide,), (TOKENS, wide))
        )
        product = Product(
            x=operand("x", dim),
            weight=operand("w", dim),
            bias=operand("bias", wide) if bias else None,
            out=operand("out", wide),
        )
        at = Addresses(
            x=x.data_ptr(), weight=weight.data_ptr(), bias=row.data_ptr() if bias else 0, out=out.data_ptr()
        )
        took = self.microseconds(partial(self.gpu.multiply, product, at, TOKENS))
        rate = round(2.0 * TOKENS * dim * wide / took / 1e6)
        return {"kernel": name, "form": "cuBLASLt, the product alone", "µs": round(took, 1), "TFLOP/s": rate}

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


def measure_forms(functions: Functions, end: float, name: str) -> list[tuple[Form, Line]]:
    """A line a form, as many as there is time for, kept as the result ``name``; cuBLASLt's first, where it has one."""
    bench = Bench()
    subjects = {how.subject for how in functions}
    lines: list[Line] = [
        bench.product(up.name, up.dim, up.wide, bias=not up.gated) for up in UPS if up.name in subjects
    ]
    lines += [bench.product(one, *wide, bias=True) for one, wide in PLAIN.items() if one in subjects]
    results: list[tuple[Form, Line]] = []
    for how, future in functions.items():
        if time.monotonic() > end:
            print(f"out of time before {how.subject}, {how.name}", flush=True)
            break
        made = future.result()
        line: Line = {"kernel": how.subject, "form": how.name}
        try:
            line = {**line, "failed": made} if isinstance(made, str) else bench.form(how, made)
        except EngineError as error:  # one form that fails must not cost the others
            line["failed"] = str(error)[:120]
        results.append((how, line))
        lines.append(line)
        print(line, flush=True)
    save(
        name,
        f"Forms of kernels, {TOKENS} tokens, fp16, {card()}, {origin()}; bytes: every operand once",
        lines,
    )
    bench.gpu.close()
    return results


def fastest(results: Sequence[tuple[Form, Line]], subject: str) -> Form | None:
    """The quickest right form of a subject; None where the usual one is."""
    right = [(line["µs"], how) for how, line in results if how.subject == subject and line.get("finite")]
    best = min(right, key=lambda pair: float(pair[0]), default=None)
    return best[1] if best is not None and best[1].inside else None


def card() -> str:
    return str(torch.cuda.get_device_name())
