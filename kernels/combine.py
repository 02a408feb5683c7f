"""The end of a mixture of experts: out = Σ share·y[slot] over a token's experts, + bias.

Shapes: T tokens, C chosen experts, S slots, D width. One program per few tokens; sums in fp32, in the order of the
choices, so that a token's result does not depend on its batch.
"""
# mypy: disable-error-code="no-untyped-def,import-untyped,no-untyped-call,untyped-decorator,misc"

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from bei.cuda_plan import Size
from bei.kernels.add_norm import tile
from bei.kernels.launch import Forms, KernelLaunch, Sample, launch, power_of_two, strides

if TYPE_CHECKING:
    from torch import Tensor


def reference(
    *, y: "Tensor", slot: "Tensor", share: "Tensor", bias: "Tensor | None", out: "Tensor"
) -> "dict[str, Tensor]":
    """y [S, D], slot and share [T, C], bias [D], out [T, D]."""
    total = (y[slot.long()].float() * share.float()[..., None]).sum(1)
    return {"out": total if bias is None else total + bias.flatten().float()}


@triton.jit
def _combine(
    y, slot, share, bias, out, tokens,
    Y_STRIDE: tl.constexpr, SLOT_STRIDE: tl.constexpr, SHARE_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    at, real = t.to(tl.int64), t < tokens
    live = real[:, None] & (d < D)[None, :]
    total = tl.zeros((BLOCK_T, BLOCK_D), dtype=tl.float32)
    for c in tl.static_range(C):
        row = tl.load(slot + at * SLOT_STRIDE + c, mask=real, other=0).to(tl.int64)
        part = tl.load(share + at * SHARE_STRIDE + c, mask=real, other=0.0)
        total += part[:, None] * tl.load(y + row[:, None] * Y_STRIDE + d[None, :], mask=live, other=0.0).to(
            tl.float32
        )
    if bias is not None:
        total += tl.load(bias + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    tl.store(out + at[:, None] * OUT_STRIDE + d[None, :], total.to(out.dtype.element_ty), mask=live)


def plan(forms: Forms, *, sm: int) -> KernelLaunch:
    """Operands y, slot, share, bias, out; see `reference`."""
    y, slot = forms["y"], forms["slot"]
    assert y and slot
    block = power_of_two(y.width)
    each, warps = tile(block)
    return launch(
        forms,
        function=_combine,
        sizes=("tokens",),
        constants={
            **strides(forms, ("y", "slot", "share", "out")),
            "D": y.width,
            "BLOCK_D": block,
            "BLOCK_T": each,
            "C": slot.width,
        },
        grid=(Size(symbol="tokens", per=each),),
        warps=warps,
    )


SHAPES: list[dict[str, Any]] = [
    {"T": 1, "C": 1, "D": 32, "bias": True},
    {"T": 9, "C": 2, "D": 384, "bias": True},
    {"T": 5, "C": 3, "D": 1000, "bias": False},
]


def make_inputs(shape: dict[str, Any], *, device: str, dtype: Any, sm: int = 80) -> Sample:
    """Slots in disorder, those in between NaN."""
    import torch

    T, C, D = shape["T"], shape["C"], shape["D"]
    slot = torch.randperm(2 * T * C, device=device)[: T * C].view(T, C).to(torch.int32)
    y = torch.full((2 * T * C, D), torch.nan, device=device, dtype=dtype)
    y[slot.flatten().long()] = torch.randn(T * C, D, device=device).to(dtype)
    return Sample(
        operands={
            "y": y,
            "slot": slot,
            "share": torch.rand(T, C, device=device),
            "bias": torch.randn(D, device=device).to(dtype) if shape["bias"] else None,
            "out": torch.full((T, D), torch.nan, device=device, dtype=dtype),
        },
        writes=("out",),
        sizes={"tokens": T},
        attrs={},
    )
