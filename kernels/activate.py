"""Activation, plain or gated: out = act(x), or act(x)·up.

Shapes: R rows, F width. x and up may be columns of one fused product.
Why: GELU by erf is not an epilogue of cuBLASLt (its own is the tanh form), and act and gate together cross memory once.
"""
# mypy: disable-error-code="no-untyped-def,import-untyped,no-untyped-call,untyped-decorator,misc"

from typing import TYPE_CHECKING, Any, Literal

import triton
import triton.language as tl

from bei.cuda_plan import Size, Symbol
from bei.kernels.launch import Forms, KernelLaunch, Sample, launch, power_of_two

if TYPE_CHECKING:
    from torch import Tensor

Act = Literal["gelu", "gelu_tanh", "silu", "relu", "tanh", "sigmoid", "identity"]


def activated(x: "Tensor", act: Act) -> "Tensor":
    """act(x) in fp32."""
    import torch
    from torch.nn import functional as F

    x = x.float()
    match act:
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "silu":
            return F.silu(x)
        case "relu":
            return F.relu(x)
        case "tanh":
            return torch.tanh(x)
        case "sigmoid":
            return torch.sigmoid(x)
        case "identity":
            return x


def reference(
    *, x: "Tensor", up: "Tensor | None", out: "Tensor", act: Act, rows: Symbol
) -> "dict[str, Tensor]":
    """x, up, out [R, F]."""
    y = activated(x, act)
    return {"out": y if up is None else y * up.float()}


@triton.jit
def _gelu(x):
    """x·Φ(x) = max(x, 0) − a·Φ(−a) with a = |x|, and log2 Φ(−a) a polynomial fitted on 0 ≤ a ≤ 6: the error is at most
    7e-7, and 7e-6 of the result in the tail. One exponential and no division: in `bei.kernels.linear` this is what the
    tensor cores wait for. Past 6 the polynomial falls faster than its subject, to −∞."""
    a = tl.abs(x)
    p = a * -1.7935298046722892e-06 + 6.0720223700627685e-05
    p = a * p - 0.0009231297299265862
    p = a * p + 0.008476581424474716
    p = a * p - 0.05389028415083885
    p = a * p - 0.4585423469543457
    p = a * p - 1.1512141227722168
    p = a * p - 1.0
    return tl.maximum(x, 0.0) - a * tl.exp2(p)


@triton.jit
def _inverse(x):
    """1/x for x ≥ 1, infinity included: two instructions, where a division is eight."""
    r = tl.rsqrt(x)
    return r * r


@triton.jit
def act_fn(x, ACT: tl.constexpr):
    """act(x) for fp32 x; powers of two, whose overflow gives the right limit."""
    if ACT == "gelu":
        y = _gelu(x)
    elif ACT == "gelu_tanh":  # x·sigmoid(2·√(2/π)·(x + 0.044715·x³))
        y = x * _inverse(1 + tl.exp2(x * (x * x * -0.10294324 - 2.3022082)))
    elif ACT == "silu":
        y = x * _inverse(1 + tl.exp2(x * -1.4426950408889634))
    elif ACT == "relu":
        y = tl.maximum(x, 0.0)
    elif ACT == "tanh":
        y = 1 - 2 * _inverse(1 + tl.exp2(x * 2.8853900817779268))
    elif ACT == "sigmoid":
        y = _inverse(1 + tl.exp2(x * -1.4426950408889634))
    else:
        y = x
    return y


@triton.jit
def _activate(
    x, up, out, rows,
    X_STRIDE: tl.constexpr, UP_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr, F: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_R: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    r = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)[:, None]
    f = (tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F))[None, :]
    live = (r < rows) & (f < F)
    y = act_fn(tl.load(x + r * X_STRIDE + f, mask=live, other=0.0).to(tl.float32), ACT)
    if up is not None:
        y *= tl.load(up + r * UP_STRIDE + f, mask=live, other=0.0).to(tl.float32)
    tl.store(out + r * OUT_STRIDE + f, y.to(out.dtype.element_ty), mask=live)


def plan(forms: Forms, *, sm: int, act: Act, rows: Symbol) -> KernelLaunch:
    """Operands x, up, out; see `reference`."""
    x, up, out = forms["x"], forms["up"], forms["out"]
    assert x and out
    block = min(1024, power_of_two(x.width))
    each = 1024 // block
    return launch(
        forms,
        function=_activate,
        sizes=(rows,),
        constants={
            "X_STRIDE": x.stride,
            "UP_STRIDE": up.stride if up else 0,
            "OUT_STRIDE": out.stride,
            "F": x.width,
            "BLOCK_F": block,
            "BLOCK_R": each,
            "ACT": act,
        },
        grid=(Size(symbol=rows, per=each), Size(symbol="one", times=x.width, per=block)),
        warps=2,
    )


SHAPES: list[dict[str, Any]] = [
    {"R": 1, "F": 48, "act": "gelu", "gated": False},
    {"R": 5, "F": 1500, "act": "gelu", "gated": True},
    {"R": 3, "F": 100, "act": "gelu_tanh", "gated": True},
    {"R": 3, "F": 100, "act": "silu", "gated": True},
    {"R": 3, "F": 33, "act": "tanh", "gated": False},
    {"R": 3, "F": 33, "act": "relu", "gated": False},
    {"R": 3, "F": 33, "act": "sigmoid", "gated": False},
]


def make_inputs(shape: dict[str, Any], *, device: str, dtype: Any, sm: int = 80) -> Sample:
    """Gate and up side by side, values far into both tails."""
    import torch

    R, F = shape["R"], shape["F"]
    fused = (4 * torch.randn(R, 2 * F, device=device)).to(dtype)
    fused[0, :2] = torch.tensor([-60.0, 60.0])
    return Sample(
        operands={
            "x": fused[:, :F],
            "up": fused[:, F:] if shape["gated"] else None,
            "out": torch.full((R, F), torch.nan, device=device, dtype=dtype),
        },
        writes=("out",),
        sizes={"tokens": R},
        attrs={"act": shape["act"], "rows": "tokens"},
    )
