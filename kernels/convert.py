"""Stored weights to the engine's: out = x·scale in another element type.

Shapes: n values. Why: weights cross the bus once as they are stored, and the GPU converts them at memory speed; the
CPU would take a second per GB.
"""
# mypy: disable-error-code="no-untyped-def,import-untyped,no-untyped-call,untyped-decorator,misc"

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from bei.cuda_plan import Size
from bei.kernels.launch import Forms, KernelLaunch, Sample, launch

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1024


def reference(*, x: "Tensor", scale: "Tensor", out: "Tensor") -> "dict[str, Tensor]":
    """x, out [n, 1]; scale fp32 [1, 1]."""
    return {"out": x.float() * scale}


@triton.jit
def _convert(x, scale, out, rows, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < rows
    y = tl.load(x + at, mask=live, other=0.0).to(tl.float32) * tl.load(scale)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=live)


def plan(forms: Forms, *, sm: int) -> KernelLaunch:
    """Operands x, scale, out; see `reference`."""
    return launch(
        forms,
        function=_convert,
        sizes=("rows",),
        constants={"BLOCK": BLOCK},
        grid=(Size(symbol="rows", per=BLOCK),),
    )


SHAPES: list[dict[str, Any]] = [{"n": 1}, {"n": 2500}]


def make_inputs(shape: dict[str, Any], *, device: str, dtype: Any, sm: int = 80) -> Sample:
    """fp32 in, ``dtype`` out."""
    import torch

    x = torch.randn(shape["n"], 1, device=device)
    return Sample(
        operands={
            "x": x,
            "scale": torch.full((1, 1), 0.5, device=device),
            "out": torch.full((shape["n"], 1), torch.nan, device=device, dtype=dtype),
        },
        writes=("out",),
        sizes={"rows": shape["n"]},
        attrs={},
    )
