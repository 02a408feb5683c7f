"""Residual sum and norm in one pass: s = (x + a)·factor, y = norm(s)·weight + bias.

Shapes: R rows (tokens or texts), D width. One program per few rows; statistics in fp32.
Why: apart they read and write the stream twice more; here each of x, a, s, y crosses memory once. Every output is
optional: ``total`` s, ``half`` and ``full`` y in two precisions. ``kind`` "none" leaves only the sum and the casts.
"""
# mypy: disable-error-code="no-untyped-def,import-untyped,no-untyped-call,untyped-decorator,misc"

from typing import TYPE_CHECKING, Any, Literal

import triton
import triton.language as tl

from bei.cuda_plan import Size, Symbol
from bei.kernels.launch import Forms, KernelLaunch, Sample, launch, power_of_two, strides

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["layer", "rms", "none"]


def normalise(
    x: "Tensor", kind: Kind, eps: float, weight: "Tensor | None", bias: "Tensor | None"
) -> "Tensor":
    """The norm of the last axis in fp32."""
    import torch

    if kind == "none" or weight is None:
        return x
    if kind == "layer":
        return torch.nn.functional.layer_norm(
            x, x.shape[-1:], weight.flatten().float(), None if bias is None else bias.flatten().float(), eps
        )
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.flatten().float()


def reference(
    *,
    x: "Tensor",
    a: "Tensor | None",
    weight: "Tensor | None",
    bias: "Tensor | None",
    total: "Tensor | None",
    half: "Tensor | None",
    brain: "Tensor | None",
    full: "Tensor | None",
    kind: Kind,
    eps: float,
    factor: float,
    rows: Symbol,
) -> "dict[str, Tensor]":
    """x, a, total, half, brain, full [R, D]; weight, bias [D]."""
    s = (x.float() if a is None else x.float() + a.float()) * factor
    y = normalise(s, kind, eps, weight, bias)
    return {"total": s, "half": y, "brain": y, "full": y}


@triton.jit
def store_norm(
    s, row, d, live, weight, bias, total, half, brain, full,
    TOTAL_STRIDE: tl.constexpr, HALF_STRIDE: tl.constexpr, BRAIN_STRIDE: tl.constexpr, FULL_STRIDE: tl.constexpr,
    D: tl.constexpr, KIND: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """s [R, BLOCK_D] in fp32, 0 from column D on, and its norm to whichever outputs there are. ``row`` int64 [R, 1], ``d``
    [1, BLOCK_D]; ``live`` where both are inside."""
    if total is not None:
        tl.store(total + row * TOTAL_STRIDE + d, s.to(total.dtype.element_ty), mask=live)
    y = s
    if KIND == "layer":
        mean = tl.sum(s, 1)[:, None] / D
        centred = tl.where(d < D, s - mean, 0.0)
        y = centred * tl.rsqrt(tl.sum(centred * centred, 1)[:, None] / D + EPS)
    elif KIND == "rms":
        y = s * tl.rsqrt(tl.sum(s * s, 1)[:, None] / D + EPS)
    if weight is not None:
        y *= tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)
    if bias is not None:
        y += tl.load(bias + d, mask=d < D, other=0.0).to(tl.float32)
    if half is not None:
        tl.store(half + row * HALF_STRIDE + d, y.to(half.dtype.element_ty), mask=live)
    if brain is not None:
        tl.store(brain + row * BRAIN_STRIDE + d, y.to(brain.dtype.element_ty), mask=live)
    if full is not None:
        tl.store(full + row * FULL_STRIDE + d, y.to(full.dtype.element_ty), mask=live)


@triton.jit
def _add_norm(
    x, a, weight, bias, total, half, brain, full, rows,
    X_STRIDE: tl.constexpr, A_STRIDE: tl.constexpr, TOTAL_STRIDE: tl.constexpr, HALF_STRIDE: tl.constexpr,
    BRAIN_STRIDE: tl.constexpr, FULL_STRIDE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
    KIND: tl.constexpr, EPS: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    r = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    live = (r < rows) & (d < D)
    s = tl.load(x + r * X_STRIDE + d, mask=live, other=0.0).to(tl.float32)
    if a is not None:
        s += tl.load(a + r * A_STRIDE + d, mask=live, other=0.0).to(tl.float32)
    if FACTOR != 1.0:
        s *= FACTOR
    store_norm(
        s, r, d, live, weight, bias, total, half, brain, full,
        TOTAL_STRIDE, HALF_STRIDE, BRAIN_STRIDE, FULL_STRIDE, D, KIND, EPS,
    )  # fmt: skip


def tile(block: int) -> tuple[int, int]:
    """Rows and warps of a program: 16 to 32 elements a thread, a row within as few warps as that allows."""
    return max(1, 1024 // block), min(8, max(1, block // 512))


def plan(forms: Forms, *, sm: int, kind: Kind, eps: float, factor: float, rows: Symbol) -> KernelLaunch:
    """Operands x, a, weight, bias, total, half, brain, full; see `reference`."""
    x = forms["x"]
    assert x
    block = power_of_two(x.width)
    each, warps = tile(block)
    return launch(
        forms,
        function=_add_norm,
        sizes=(rows,),
        constants={
            **strides(forms, ("x", "a", *OUTPUTS)),
            "D": x.width,
            "BLOCK_D": block,
            "BLOCK_R": each,
            "KIND": kind,
            "EPS": eps,
            "FACTOR": factor,
        },
        grid=(Size(symbol=rows, per=each),),
        warps=warps,
    )


OUTPUTS = ("total", "half", "brain", "full")
"""The sum in the stream's type; the norm in fp16, bf16 and fp32."""

SHAPES: list[dict[str, Any]] = [
    {"R": 1, "D": 32, "kind": "layer", "bias": True, "sum": True},
    {"R": 7, "D": 384, "kind": "layer", "bias": False, "sum": True},
    {"R": 5, "D": 1000, "kind": "rms", "bias": False, "sum": False},
    {"R": 3, "D": 2560, "kind": "rms", "bias": False, "sum": True},
    {"R": 9, "D": 40, "kind": "none", "bias": False, "sum": True, "factor": 0.5},
]


def make_inputs(shape: dict[str, Any], *, device: str, dtype: Any, sm: int = 80) -> Sample:
    """x in fp32, as the stream is, with a mean that a careless variance would trip over."""
    import torch

    R, D, normed = shape["R"], shape["D"], shape["kind"] != "none"
    x = torch.randn(R, D, device=device) + 8
    wide = torch.randn(R, 2 * D, device=device).to(dtype)
    return Sample(
        operands={
            "x": x,
            "a": wide[:, D:] if shape["sum"] else None,
            "weight": 1 + 0.1 * torch.randn(D, device=device) if normed else None,
            "bias": torch.randn(D, device=device) if shape["bias"] else None,
            "total": torch.full((R, D), torch.nan, device=device),
            "half": torch.full((R, D), torch.nan, device=device, dtype=dtype),
            "brain": torch.full((R, D), torch.nan, device=device, dtype=torch.bfloat16),
            "full": torch.full((R, D), torch.nan, device=device),
        },
        writes=OUTPUTS,
        sizes={"tokens": R},
        attrs={"kind": shape["kind"], "eps": 1e-6, "factor": shape.get("factor", 1.0), "rows": "tokens"},
    )
