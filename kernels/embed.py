"""Sum of embedding rows, then the norm: s = tokens[id]·scale + types[type] + positions[position], y = norm(s).

Shapes: T tokens, D width. One program per few tokens.
Why: gathers, sums and norm in one pass write the stream once instead of reading and writing it four times.
"""
# mypy: disable-error-code="no-untyped-def,import-untyped,no-untyped-call,untyped-decorator,misc"

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from bei.cuda_plan import Size
from bei.kernels.add_norm import OUTPUTS, Kind, normalise, store_norm, tile
from bei.kernels.launch import Forms, KernelLaunch, Sample, launch, power_of_two, strides

if TYPE_CHECKING:
    from torch import Tensor


def reference(
    *,
    ids: "Tensor",
    types: "Tensor | None",
    positions: "Tensor | None",
    token_table: "Tensor",
    type_table: "Tensor | None",
    position_table: "Tensor | None",
    weight: "Tensor | None",
    bias: "Tensor | None",
    total: "Tensor | None",
    half: "Tensor | None",
    brain: "Tensor | None",
    full: "Tensor | None",
    scale: float,
    kind: Kind,
    eps: float,
) -> "dict[str, Tensor]":
    """Indices [T, 1]; tables [rows, D]. A type table without indices adds its first row to every token."""
    s = token_table[ids.flatten().long()].float() * scale
    if type_table is not None:
        s = s + (type_table[0] if types is None else type_table[types.flatten().long()]).float()
    if position_table is not None and positions is not None:
        s = s + position_table[positions.flatten().long()].float()
    y = normalise(s, kind, eps, weight, bias)
    return {"total": s, "half": y, "brain": y, "full": y}


@triton.jit
def _embed(
    ids, types, positions, token_table, type_table, position_table, weight, bias, total, half, brain, full, tokens,
    TOTAL_STRIDE: tl.constexpr, HALF_STRIDE: tl.constexpr, BRAIN_STRIDE: tl.constexpr, FULL_STRIDE: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    SCALE: tl.constexpr, KIND: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    real = t < tokens
    d = tl.arange(0, BLOCK_D)[None, :]
    live = real[:, None] & (d < D)
    row = tl.load(ids + t, mask=real, other=0).to(tl.int64)[:, None]
    s = tl.load(token_table + row * D + d, mask=live, other=0.0).to(tl.float32) * SCALE
    if type_table is not None:
        if types is not None:
            row = tl.load(types + t, mask=real, other=0).to(tl.int64)[:, None]
            s += tl.load(type_table + row * D + d, mask=live, other=0.0).to(tl.float32)
        else:
            s += tl.load(type_table + d, mask=d < D, other=0.0).to(tl.float32)
    if position_table is not None:
        row = tl.load(positions + t, mask=real, other=0).to(tl.int64)[:, None]
        s += tl.load(position_table + row * D + d, mask=live, other=0.0).to(tl.float32)
    store_norm(
        s, t.to(tl.int64)[:, None], d, live, weight, bias, total, half, brain, full,
        TOTAL_STRIDE, HALF_STRIDE, BRAIN_STRIDE, FULL_STRIDE, D, KIND, EPS,
    )  # fmt: skip


def plan(forms: Forms, *, sm: int, scale: float, kind: Kind, eps: float) -> KernelLaunch:
    """Operands as in `reference`."""
    table = forms["token_table"]
    assert table
    block = power_of_two(table.width)
    each, warps = tile(block)
    return launch(
        forms,
        function=_embed,
        sizes=("tokens",),
        constants={
            **strides(forms, OUTPUTS),
            "D": table.width,
            "BLOCK_D": block,
            "BLOCK_T": each,
            "SCALE": scale,
            "KIND": kind,
            "EPS": eps,
        },
        grid=(Size(symbol="tokens", per=each),),
        warps=warps,
    )


SHAPES: list[dict[str, Any]] = [
    {"T": 1, "D": 32, "types": "index", "positions": True, "kind": "layer"},
    {"T": 9, "D": 384, "types": "row", "positions": True, "kind": "layer"},
    {"T": 13, "D": 1000, "types": None, "positions": False, "kind": "rms", "scale": 31.6},
    {"T": 6, "D": 96, "types": None, "positions": False, "kind": "none"},
]


def make_inputs(shape: dict[str, Any], *, device: str, dtype: Any, sm: int = 80) -> Sample:
    """A vocabulary of 50, 2 types, 20 positions."""
    import torch

    T, D, kind = shape["T"], shape["D"], shape["kind"]

    def index(rows: int) -> "Tensor":
        return torch.randint(0, rows, (T, 1), device=device, dtype=torch.int32)

    def table(rows: int) -> "Tensor":
        return torch.randn(rows, D, device=device).to(dtype)

    return Sample(
        operands={
            "ids": index(50),
            "types": index(2) if shape["types"] == "index" else None,
            "positions": index(20) if shape["positions"] else None,
            "token_table": table(50),
            "type_table": table(2) if shape["types"] else None,
            "position_table": table(20) if shape["positions"] else None,
            "weight": None if kind == "none" else torch.randn(D, device=device),
            "bias": torch.randn(D, device=device) if kind == "layer" else None,
            "total": torch.full((T, D), torch.nan, device=device),
            "half": torch.full((T, D), torch.nan, device=device, dtype=dtype),
            "brain": torch.full((T, D), torch.nan, device=device, dtype=torch.bfloat16),
            "full": torch.full((T, D), torch.nan, device=device),
        },
        writes=OUTPUTS,
        sizes={"tokens": T},
        attrs={"scale": shape.get("scale", 1.0), "kind": kind, "eps": 1e-6},
    )
