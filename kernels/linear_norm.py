"""A linear with the residual sum and the norm after it: s = x·Wᵀ + b + residual, y = norm(s)·scale + shift; ``inner``: first
x·Wᵀ + b is normalised itself, as sandwich norms do. For SM90, in CUDA C++ (hopper_norm.cu).

Shapes: R rows, K features in, N out. A cluster of blocks computes whole rows, so that N is 2, 4 or 8 tiles wide.
Why: `bei.kernels.add_norm` by itself reads the product and the residual and writes y at memory's rate; here the product never
leaves the registers, and the norm of one tile is computed beside the product of the next.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bei.cuda_plan import Box, Size, Symbol
from bei.kernels import hopper
from bei.kernels.add_norm import Kind, normalise
from bei.kernels.launch import Forms, KernelLaunch, Sample, Source, launch

if TYPE_CHECKING:
    from torch import Tensor

VECTORS = ("inner_scale", "scale", "shift")
"""fp32 rows of N values."""
TAKEN = {"residual": hopper.ROWS, "total": 16, "out": 16}
"""Rows that are copied at once: those of a tile, or of a warp."""


def reference(
    *,
    x: "Tensor",
    weight: "Tensor",
    bias: "Tensor | None",
    residual: "Tensor | None",
    inner_scale: "Tensor | None",
    scale: "Tensor | None",
    shift: "Tensor | None",
    total: "Tensor | None",
    out: "Tensor",
    kind: Kind,
    eps: float,
    inner: bool,
    rows: Symbol,
    backwards: bool = False,
) -> "dict[str, Tensor]":
    """x [R, K], weight [N, K], bias [N], residual, total (s) and out (y) [R, N]; inner_scale, scale, shift [N] in fp32."""
    s = x.float() @ weight.float().T
    if bias is not None:
        s = s + bias.float().flatten()
    if inner:
        s = normalise(s, kind, eps, inner_scale, None)
    if residual is not None:
        s = s + residual.float()
    return {"total": s, "out": normalise(s, kind, eps, scale, shift)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """A block's ``columns`` of 128 rows, which ``cluster`` blocks have in all; ``stages`` are on their way at once."""

    cluster: int
    columns: int
    stages: int


TILES = {
    384: Tile(cluster=1, columns=384, stages=3),
    512: Tile(cluster=2, columns=256, stages=4),
    768: Tile(cluster=2, columns=384, stages=3),
}
"""By out's width. Wider rows would need clusters of three or four blocks: of those an H100 has 39 to 43, or 30, at once, which
leaves a part of it idle (decision 7)."""


def fits(forms: Forms, *, sm: int) -> bool:
    """Whether the kernel can serve: as `hopper.fits`, and a width that a cluster can hold."""
    sixteen = {name: form for name, form in forms.items() if name not in VECTORS}
    out = forms["out"]
    vectors = [form for name in VECTORS if (form := forms[name])]
    return (
        out is not None
        and out.width in TILES
        and hopper.fits({**sixteen, "groups": None}, sm=sm, transposed=False)
        and all(form.dtype == "f32" and form.aligned for form in vectors)
    )


def plan(
    forms: Forms, *, sm: int, kind: Kind, eps: float, inner: bool, rows: Symbol, backwards: bool = False
) -> KernelLaunch:
    """Operands x, weight, bias, residual, inner_scale, scale, shift, total, out, which fit (`fits`); see `reference`."""
    x, out = forms["x"], forms["out"]
    assert sm == 90 and x and out
    t = TILES[out.width]
    parts = -(-t.columns // 256)
    stage = (hopper.ROWS + t.columns) * hopper.FEATURES * 2
    steps, vectors, statistics = -(-x.width // hopper.FEATURES), 4 * t.columns * 4, 4 * t.cluster * 64 * 8
    shared = 1024 + t.stages * stage + vectors + statistics + 8 * (2 * t.stages + 4)
    return launch(
        forms,
        function=Source(
            name="linear_norm",
            text=hopper.source("hopper_norm.cu", t.columns // parts, x.dtype),
            shared=shared,
            cluster=t.cluster,
        ),
        sizes=(rows,),
        constants={
            "K": x.width,
            "N": out.width,
            "TN": t.columns,
            "STAGES": t.stages,
            "TOGETHER": True,
            "SLOTS": steps + -(-t.columns * hopper.ROWS * 2 // stage),
            "CLUSTER": t.cluster,
            "LAYER": kind == "layer",
            "EPSILON": eps,
            "INNER": inner,
            "BACKWARDS": backwards,
            **{name.upper(): forms[name] is not None for name in ("bias", "residual", "total", *VECTORS)},
            "BF16": x.dtype == "bf16",
        },
        grid=(Size(symbol="one", times=t.cluster), Size(symbol="clusters")),
        warps=12,
        boxes={
            "x": Box(rows=hopper.ROWS // t.cluster, columns=hopper.FEATURES, swizzle=128),
            "weight": Box(rows=t.columns // parts, columns=hopper.FEATURES, swizzle=128, height=out.width),
            **{
                name: Box(rows=lines, columns=64, swizzle=128) for name, lines in TAKEN.items() if forms[name]
            },
        },
    )


SHAPES: list[dict[str, Any]] = [
    {"R": 5, "K": 64, "N": 384, "kind": "layer"},
    {"R": 300, "K": 384, "N": 768, "kind": "layer", "total": True},
    {"R": 130, "K": 104, "N": 768, "kind": "rms", "shift": False, "bias": False, "total": True},
    {
        "R": 129,
        "K": 768,
        "N": 768,
        "kind": "rms",
        "shift": False,
        "bias": False,
        "inner": True,
        "total": True,
    },
    {"R": 127, "K": 328, "N": 512, "kind": "layer", "shift": False, "residual": False},
    {"R": 20000, "K": 384, "N": 384, "kind": "layer"},
    {"R": 20000, "K": 72, "N": 768, "kind": "layer", "total": True},
    {
        "R": 20000,
        "K": 64,
        "N": 512,
        "kind": "rms",
        "inner": True,
        "backwards": True,
        "shift": False,
        "total": True,
    },
]
"""A few rows, more than a tile, more than the GPU's clusters have at once; every combination of operands that lowering makes."""


def make_inputs(shape: dict[str, Any], *, device: str, dtype: Any, sm: int = 90) -> Sample:
    """Sums with a mean that a careless variance would trip over."""
    import torch

    R, K, N = shape["R"], shape["K"], shape["N"]
    inner, given = shape.get("inner", False), {"residual": True, "shift": True, **shape}

    def row(mean: float) -> "Tensor":
        return mean + 0.1 * torch.randn(N, device=device)

    return Sample(
        operands={
            "x": torch.randn(R, K, device=device).to(dtype),
            "weight": (torch.randn(N, K, device=device) / K**0.5).to(dtype),
            "bias": torch.randn(N, device=device).to(dtype) if shape.get("bias", True) else None,
            "residual": (torch.randn(R, N, device=device) + 8).to(dtype) if given["residual"] else None,
            "inner_scale": row(1) if inner else None,
            "scale": row(1),
            "shift": row(0) if given["shift"] else None,
            "total": torch.full((R, N), torch.nan, device=device, dtype=dtype)
            if shape.get("total")
            else None,
            "out": torch.full((R, N), torch.nan, device=device, dtype=dtype),
        },
        writes=("total", "out") if shape.get("total") else ("out",),
        sizes={"tokens": R},
        attrs={
            "kind": shape["kind"],
            "eps": 1e-6,
            "inner": inner,
            "rows": "tokens",
            "backwards": shape.get("backwards", False),
        },
    )
