"""x / max(‖x‖₂, 1e-12) in fp32.

Shapes: R rows, D width. One program per row.
Why: the last step of nearly every embedding model; one launch instead of a reduction and a division.
"""
# mypy: disable-error-code="no-untyped-def,import-untyped,no-untyped-call,untyped-decorator,misc"

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from bei.cuda_plan import Size, Symbol
from bei.kernels.launch import Forms, KernelLaunch, Sample, launch, power_of_two

if TYPE_CHECKING:
    from torch import Tensor


def reference(*, x: "Tensor", out: "Tensor", rows: Symbol) -> "dict[str, Tensor]":
    """x, out [R, D]."""
    import torch

    return {"out": torch.nn.functional.normalize(x.float(), dim=-1, eps=1e-12)}


@triton.jit
def _normalize(
    x, out, X_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    r = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    live = d < D
    v = tl.load(x + r * X_STRIDE + d, mask=live, other=0.0).to(tl.float32)
    y = v / tl.maximum(tl.sqrt(tl.sum(v * v, 0)), 1e-12)
    tl.store(out + r * OUT_STRIDE + d, y.to(out.dtype.element_ty), mask=live)


def plan(forms: Forms, *, sm: int, rows: Symbol) -> KernelLaunch:
    """Operands x, out; see `reference`."""
    x, out = forms["x"], forms["out"]
    assert x and out
    return launch(
        forms,
        function=_normalize,
        sizes=(),
        constants={
            "X_STRIDE": x.stride,
            "OUT_STRIDE": out.stride,
            "D": x.width,
            "BLOCK_D": power_of_two(x.width),
        },
        grid=(Size(symbol=rows),),
    )


SHAPES: list[dict[str, Any]] = [{"R": 1, "D": 32}, {"R": 3, "D": 1000}]


def make_inputs(shape: dict[str, Any], *, device: str, dtype: Any, sm: int = 80) -> Sample:
    """The last row is zero."""
    import torch

    x = torch.randn(shape["R"], shape["D"], device=device)
    x[-1] = 0
    return Sample(
        operands={"x": x, "out": torch.full_like(x, torch.nan)},
        writes=("out",),
        sizes={"rows": len(x)},
        attrs={"rows": "rows"},
    )
