"""Routing of a mixture of experts: each token's best experts, their shares, and how often each was chosen.

Shapes: T tokens, E experts, C chosen by a token. share is softmax(logits) of the best C experts (ties: the lower
index), renormalised where the model does. One program per block of tokens, which counts its own choices: the first
pass of a sort by expert whose second is `bei.kernels.place`. Why: routing stays on the device, and without atomics the
same batch gives the same order.
"""
# mypy: disable-error-code="no-untyped-def,import-untyped,no-untyped-call,untyped-decorator,misc"

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from bei.cuda_plan import Size
from bei.kernels.launch import Forms, KernelLaunch, Sample, launch, power_of_two, strides

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = 64
"""Tokens of a block."""


def reference(
    *, logits: "Tensor", chosen: "Tensor", share: "Tensor", counts: "Tensor", renormalize: bool
) -> "dict[str, Tensor]":
    """logits [T, E], chosen and share [T, C]; counts [T, E], a row for each block of tokens, the rest stays as it is."""
    import torch

    probs = logits.float().softmax(-1).nan_to_num()  # rows past the batch's own may hold anything
    best, which = probs.sort(dim=-1, descending=True, stable=True)
    top, which = best[:, : chosen.shape[1]], which[:, : chosen.shape[1]]
    if renormalize:
        top = top / top.sum(-1, keepdim=True)
    hits = torch.nn.functional.one_hot(which, logits.shape[1]).sum(1)
    totals = counts.clone()
    for block, part in enumerate(hits.split(TOKENS)):
        totals[block] = part.sum(0)
    return {"chosen": which, "share": top, "counts": totals}


@triton.jit
def _route(
    logits, chosen, share, counts, tokens,
    LOGITS_STRIDE: tl.constexpr, CHOSEN_STRIDE: tl.constexpr, SHARE_STRIDE: tl.constexpr, COUNTS_STRIDE: tl.constexpr,
    E: tl.constexpr, BLOCK_E: tl.constexpr, C: tl.constexpr, BLOCK_T: tl.constexpr, RENORMALIZE: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    e = tl.arange(0, BLOCK_E)
    at = t.to(tl.int64)
    real = t < tokens
    z = tl.load(
        logits + at[:, None] * LOGITS_STRIDE + e[None, :], mask=real[:, None] & (e < E)[None, :], other=-float("inf")
    )  # fmt: skip
    p = tl.exp(z - tl.max(z, 1)[:, None])
    p = p / tl.sum(p, 1)[:, None]
    p = tl.where((p >= 0) & (e < E)[None, :], p, 0.0)  # NaN is not: a row past the batch's own
    left = tl.where((e < E)[None, :], p, -1.0)
    hits = tl.zeros((BLOCK_T, BLOCK_E), dtype=tl.int32)
    whole = tl.zeros((BLOCK_T,), dtype=tl.float32)
    for _ in tl.static_range(C):
        peak = tl.max(left, 1)
        best = tl.min(tl.where(left == peak[:, None], e[None, :], BLOCK_E), 1)
        mine = e[None, :] == best[:, None]
        whole += peak
        hits += mine.to(tl.int32)
        left = tl.where(mine, -1.0, left)
    left = tl.where((e < E)[None, :], p, -1.0)
    for c in tl.static_range(C):
        peak = tl.max(left, 1)
        best = tl.min(tl.where(left == peak[:, None], e[None, :], BLOCK_E), 1)
        left = tl.where(e[None, :] == best[:, None], -1.0, left)
        part = peak / whole if RENORMALIZE else peak
        tl.store(chosen + at * CHOSEN_STRIDE + c, best, mask=real)
        tl.store(share + at * SHARE_STRIDE + c, part, mask=real)
    total = tl.sum(tl.where(real[:, None], hits, 0), 0)
    tl.store(counts + tl.program_id(0).to(tl.int64) * COUNTS_STRIDE + e, total, mask=e < E)


def plan(forms: Forms, *, sm: int, renormalize: bool) -> KernelLaunch:
    """Operands logits, chosen, share, counts; see `reference`."""
    logits, chosen = forms["logits"], forms["chosen"]
    assert logits and chosen
    return launch(
        forms,
        function=_route,
        sizes=("tokens",),
        constants={
            **strides(forms, ("logits", "chosen", "share", "counts")),
            "E": logits.width,
            "BLOCK_E": power_of_two(logits.width),
            "C": chosen.width,
            "BLOCK_T": TOKENS,
            "RENORMALIZE": renormalize,
        },
        grid=(Size(symbol="tokens", per=TOKENS),),
    )


SHAPES: list[dict[str, Any]] = [
    {"T": 1, "E": 2, "C": 1, "renormalize": False},
    {"T": 130, "E": 8, "C": 2, "renormalize": True},
    {"T": 67, "E": 5, "C": 3, "renormalize": False},
]


def make_inputs(shape: dict[str, Any], *, device: str, dtype: Any, sm: int = 80) -> Sample:
    """Two experts of the first token tie; the last token's logits are NaN where there are others."""
    import torch

    T, E, C = shape["T"], shape["E"], shape["C"]
    logits = torch.randn(T, E, device=device)
    logits[0, :2] = 3.0
    if T > 1 and not shape["renormalize"]:
        logits[-1] = torch.nan
    return Sample(
        operands={
            "logits": logits,
            "chosen": torch.full((T, C), -1, dtype=torch.int32, device=device),
            "share": torch.full((T, C), torch.nan, device=device),
            "counts": torch.zeros((T, E), dtype=torch.int32, device=device),
        },
        writes=("chosen", "share", "counts"),
        sizes={"tokens": T},
        attrs={"renormalize": shape["renormalize"]},
    )
