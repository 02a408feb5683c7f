"""A linear with its activation: out = act(x·Wᵀ + b), or gated act(x·Gᵀ + b)·(x·Uᵀ + c), by expert where there are groups,
plus a residual.

Shapes: R rows, K features in, N out; S slots and E experts (see `bei.kernels.route`). One program per tile of out;
neighbouring programs share their rows of x, and all of W stays in the L2 cache.
Why: erf-GELU and gates are no epilogue of cuBLASLt, and in a kernel of their own the hidden layer crosses memory twice
more; and a product by expert, whose sizes only the device knows, cuBLASLt cannot compute in one launch.
"""
# mypy: disable-error-code="no-untyped-def,import-untyped,no-untyped-call,untyped-decorator,misc"

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from bei.cuda_plan import Size, Symbol
from bei.kernels import hopper
from bei.kernels.activate import Act, act_fn, activated
from bei.kernels.launch import Forms, KernelLaunch, Sample, launch, power_of_two, strides

if TYPE_CHECKING:
    from torch import Tensor


def reference(
    *,
    x: "Tensor",
    weight: "Tensor",
    bias: "Tensor | None",
    residual: "Tensor | None",
    order: "Tensor | None",
    groups: "Tensor | None",
    out: "Tensor",
    act: Act,
    gated: bool,
    transposed: bool,
    rows: Symbol,
    backwards: bool = False,
) -> "dict[str, Tensor]":
    """x [R, K], weight [N, K] (gated: G above U, [2N, K]; ``transposed``: [K, N]), residual and out [R, N].

    By expert: weight holds E of these one below the other, ``groups`` [1, 2E] the first slot and the number of slots of
    each, out [S, N]; x has slots too, or ``order`` [S, 1] names the row of each slot. Other slots stay as they are.
    """
    import torch

    def computed(x: "Tensor", w: "Tensor") -> "Tensor":
        y = x.float() @ (w.float() if transposed else w.float().T)
        if bias is not None:
            y = y + bias.float().flatten()
        if not gated:
            return activated(y, act)
        gate, up = y.chunk(2, -1)
        return activated(gate, act) * up

    if groups is None:
        return {"out": computed(x, weight) + (0 if residual is None else residual.float())}
    result = out.float().clone()
    for expert, (first, count) in enumerate(groups.view(-1, 2).tolist()):
        slots = torch.arange(first, first + count, device=x.device)
        source = slots if order is None else order.flatten()[slots].long()
        result[slots] = computed(x[source], weight.chunk(groups.numel() // 2)[expert])
    return {"out": result}


@triton.jit
def _linear(
    x, weight, bias, residual, order, groups, out, rows,
    X_STRIDE: tl.constexpr, WEIGHT_STRIDE: tl.constexpr, RESIDUAL_STRIDE: tl.constexpr, ORDER_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr,
    K: tl.constexpr, N: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    ACT: tl.constexpr, GATED: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(1) * BLOCK_M
    end = rows
    if groups is not None:
        e = tl.arange(0, BLOCK_E)
        starts = tl.load(groups + 2 * e, mask=e < E, other=0x7FFFFFFF)
        counts = tl.load(groups + 2 * e + 1, mask=e < E, other=0)
        expert = (
            tl.sum((starts <= first).to(tl.int32), 0) - 1
        )  # an empty expert begins where the next one does
        end = tl.sum(tl.where(e == expert, starts + counts, 0), 0)
        if first >= end:
            return
        weight += expert.to(tl.int64) * ((K if TRANSPOSED else (2 * N if GATED else N)) * WEIGHT_STRIDE)
    m = first + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    source = tl.minimum(m, end - 1)  # a row that exists in the place of one that does not: loads need no mask
    if order is not None:
        source = tl.load(order + source * ORDER_STRIDE)
    column = n % N  # neighbours stay neighbours, so that a load may take 16 bytes; a minimum would hide that
    k = tl.arange(0, BLOCK_K)
    x_at = x + source.to(tl.int64)[:, None] * X_STRIDE + k[None, :]
    STEP: tl.constexpr = BLOCK_K * WEIGHT_STRIDE if TRANSPOSED else BLOCK_K
    if TRANSPOSED:
        w_at = weight + k[:, None] * WEIGHT_STRIDE + column[None, :]
    else:
        w_at = weight + column[None, :].to(tl.int64) * WEIGHT_STRIDE + k[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if GATED:
        up = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for at in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            a = tl.load(x_at)
            b = tl.load(w_at)
        else:
            a = tl.load(x_at, mask=(at + k < K)[None, :], other=0.0)
            b = tl.load(w_at, mask=(at + k < K)[:, None], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
        if GATED:
            if K % BLOCK_K == 0:
                c = tl.load(w_at + N * WEIGHT_STRIDE)
            else:
                c = tl.load(w_at + N * WEIGHT_STRIDE, mask=(at + k < K)[:, None], other=0.0)
            up = tl.dot(a, c, up, input_precision="ieee")
        x_at += BLOCK_K
        w_at += STEP
    if bias is not None:
        acc += tl.load(bias + column).to(tl.float32)[None, :]
        if GATED:
            up += tl.load(bias + N + column).to(tl.float32)[None, :]
    y = act_fn(acc, ACT)
    if GATED:
        y *= up
    if residual is not None:
        at = residual + source.to(tl.int64)[:, None] * RESIDUAL_STRIDE + column[None, :]
        y += tl.load(at).to(tl.float32)
    target = out + m.to(tl.int64)[:, None] * OUT_STRIDE + n[None, :]
    tl.store(target, y.to(out.dtype.element_ty), mask=(m < end)[:, None] & (n < N)[None, :])


GROUP = 128
"""Slots of an expert are a multiple of this, so that a tile has one expert's weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """``rows`` and ``columns`` of out, ``features`` of x at a time."""

    rows: int
    columns: int
    features: int
    warps: int
    stages: int


def tile(sm: int, *, fp32: bool, gated: bool, width: int) -> Tile:
    """What a program computes. Measured on SM90 (benchmarks/results/h100/cuda_kernels.md); elsewhere what fits."""
    if fp32:
        return Tile(rows=64, columns=32 if gated else 64, features=16, warps=4, stages=1)
    if sm in (80, 90, 100, 103):
        columns = 128 if width <= 1536 else 64 if gated else 256
        return Tile(rows=128, columns=columns, features=64, warps=8, stages=3)
    return Tile(rows=128, columns=64 if gated else 128, features=32, warps=8, stages=3)


def few_tiles(sm: int, *, fp32: bool, gated: bool) -> dict[int, Tile]:
    """By the rows to which they are faster: smaller tiles, so that every multiprocessor has one. Measured on SM90."""
    if fp32 or sm != 90:
        return {}
    half = 2 if gated else 1
    return {
        48: Tile(rows=32 // half, columns=32, features=128, warps=4, stages=4),
        256: Tile(rows=64, columns=64 // half, features=64, warps=4, stages=5),
        1024: Tile(rows=128, columns=128 // half, features=64, warps=8, stages=3),
    }


def plan(
    forms: Forms, *, sm: int, act: Act, gated: bool, transposed: bool, rows: Symbol, backwards: bool = False
) -> KernelLaunch:
    """Operands x, weight, bias, residual, order, groups, out; see `reference`. ``rows``: out's, tokens or slots;
    ``backwards``: the last ones first, where SM90's own form serves."""
    if hopper.fits(forms, sm=sm, transposed=transposed):
        return hopper.plan(forms, act=act, gated=gated, rows=rows, backwards=backwards)
    x, out = forms["x"], forms["out"]
    assert x and out
    t = tile(sm, fp32=x.dtype == "f32", gated=gated, width=out.width)
    return _tiled(forms, t, act=act, gated=gated, transposed=transposed, rows=rows)


def few(
    forms: Forms, *, sm: int, act: Act, gated: bool, transposed: bool, rows: Symbol, backwards: bool = False
) -> dict[int, KernelLaunch]:
    """`plan` for small batches, by the rows to which it serves."""
    x = forms["x"]
    assert x
    tiles = few_tiles(sm, fp32=x.dtype == "f32", gated=gated)
    return {
        most: _tiled(forms, t, act=act, gated=gated, transposed=transposed, rows=rows)
        for most, t in tiles.items()
    }


def _tiled(forms: Forms, t: Tile, *, act: Act, gated: bool, transposed: bool, rows: Symbol) -> KernelLaunch:
    x, out, groups = forms["x"], forms["out"], forms["groups"]
    assert x and out
    experts = groups.width // 2 if groups else 0
    return launch(
        forms,
        function=_linear,
        sizes=(rows,),
        constants={
            **strides(forms, ("x", "weight", "residual", "order", "out")),
            "K": x.width,
            "N": out.width,
            "E": experts,
            "BLOCK_E": power_of_two(experts),
            "BLOCK_M": t.rows,
            "BLOCK_N": t.columns,
            "BLOCK_K": t.features,
            "ACT": act,
            "GATED": gated,
            "TRANSPOSED": transposed,
        },
        grid=(Size(symbol="one", times=out.width, per=t.columns), Size(symbol=rows, per=t.rows)),
        warps=t.warps,
        stages=t.stages,
    )


SHAPES: list[dict[str, Any]] = [
    {"R": 5, "K": 64, "N": 24, "act": "gelu", "gated": False},
    {"R": 130, "K": 100, "N": 130, "act": "relu", "gated": False},
    {"R": 3, "K": 64, "N": 40, "act": "silu", "gated": True},
    {"R": 7, "K": 33, "N": 20, "act": "gelu", "gated": True, "bias": False},
    {"R": 9, "K": 64, "N": 24, "act": "gelu", "gated": False, "counts": (5, 0, 70), "bias": False},
    {"R": 9, "K": 48, "N": 40, "act": "identity", "gated": False, "counts": (0, 3, 0), "order": False,
     "transposed": True, "bias": False},
    {"R": 150, "K": 128, "N": 200, "act": "identity", "gated": False, "residual": True},
    {"R": 70, "K": 96, "N": 104, "act": "gelu_tanh", "gated": True},
]  # fmt: skip
"""``counts``: slots an expert has."""


def make_inputs(shape: dict[str, Any], *, device: str, dtype: Any, sm: int = 80) -> Sample:
    """Slots that no expert has hold NaN."""
    import torch

    R, K, N, counts = shape["R"], shape["K"], shape["N"], shape.get("counts")
    gated, transposed = shape["gated"], shape.get("transposed", False)
    wide, experts = N * (1 + gated), len(counts or (1,))
    starts = [sum(-(-n // GROUP) * GROUP for n in (counts or ())[:e]) for e in range(experts)]
    slots = sum(-(-n // GROUP) * GROUP for n in counts or ()) + GROUP
    rows = R if counts is None or shape.get("order", True) else slots
    x = torch.randn(rows, K, device=device).to(dtype)
    size = (experts * K, N) if transposed else (experts * wide, K)
    order = groups = None
    if counts is not None:
        pairs = [part for pair in zip(starts, counts, strict=True) for part in pair]
        groups = torch.tensor([pairs], dtype=torch.int32, device=device)
        if shape.get("order", True):
            order = torch.randint(0, R, (slots, 1), dtype=torch.int32, device=device)
        else:
            used = torch.zeros(slots, dtype=torch.bool)
            for first, count in zip(starts, counts, strict=True):
                used[first : first + count] = True
            x[~used.to(device)] = torch.nan
    return Sample(
        operands={
            "x": x,
            "weight": (torch.randn(size, device=device) / K**0.5).to(dtype),
            "bias": torch.randn(wide, device=device).to(dtype) if shape.get("bias", True) else None,
            "residual": torch.randn(R, N, device=device).to(dtype) if shape.get("residual") else None,
            "order": order,
            "groups": groups,
            "out": torch.zeros(R if counts is None else slots, N, device=device, dtype=dtype),
        },
        writes=("out",),
        sizes={"tokens": R} if counts is None else {"slots": slots},
        attrs={
            "act": shape["act"],
            "gated": gated,
            "transposed": transposed,
            "rows": "tokens" if counts is None else "slots",
        },
    )
