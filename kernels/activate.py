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
    """x·Φ(x). erfc by Abramowitz & Stegun 7.1.26, |error| ≤ 1.5e-7: fp32 rounding, at a third of libdevice's cost."""
    z = tl.abs(x) * 0.7071067811865476
    t = 1 / (1 + 0.3275911 * z)
    series = -0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))
    erfc = t * (0.254829592 + t * series) * tl.exp2(z * z * -1.4426950408889634)
    return x * tl.where(x < 0, 0.5 * erfc, 1 - 0.5 * erfc)


@triton.jit
def act_fn(x, ACT: tl.constexpr):
    """act(x) for fp32 x; tanh through exp, whose overflow gives the right limit."""
    if ACT == "gelu":
        y = _gelu(x)
    elif ACT == "gelu_tanh":
        u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        y = x - x / (tl.exp(2 * u) + 1)
    elif ACT == "silu":
        y = x / (1 + tl.exp(-x))
    elif ACT == "relu":
        y = tl.maximum(x, 0.0)
    elif ACT == "tanh":
        y = 1 - 2 / (tl.exp(2 * x) + 1)
    elif ACT == "sigmoid":
        y = 1 / (1 + tl.exp(-x))
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
