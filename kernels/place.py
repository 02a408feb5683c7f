"""A slot for every choice of an expert, sorted by expert: the second pass after `bei.kernels.route`.

Shapes: T tokens, E experts, C chosen by a token, S slots. An expert's slots begin at a multiple of `linear.GROUP`; within
it they follow the tokens' order. One program per block of tokens sums the counts of all blocks (a few kilobytes).
"""
# mypy: disable-error-code="no-untyped-def,import-untyped,no-untyped-call,untyped-decorator,misc"

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from bei.cuda_plan import Size
from bei.kernels.launch import Forms, KernelLaunch, Sample, launch, power_of_two, strides
from bei.kernels.linear import GROUP
from bei.kernels.route import TOKENS

if TYPE_CHECKING:
    from torch import Tensor

BLOCKS = 128
"""Blocks of tokens whose counts are summed at a time."""


def slots(choices: int, experts: int) -> Size:
    """How many slots T tokens with so many choices each can need."""
    return Size(symbol="tokens", times=choices, plus=experts * (GROUP - 1))


def reference(
    *, chosen: "Tensor", counts: "Tensor", order: "Tensor", slot: "Tensor", groups: "Tensor"
) -> "dict[str, Tensor]":
    """chosen and slot [T, C], counts [T, E] as `route` leaves them, order [S, 1] the token in each slot (unused ones stay
    as they are), groups [1, 2E] the first slot and the number of slots of each expert."""
    import torch

    expert = chosen.flatten().long()
    E = counts.shape[1]
    number = torch.bincount(expert, minlength=E)
    starts = torch.cumsum(-(-number // GROUP) * GROUP, 0) - -(-number // GROUP) * GROUP
    sorted_by = torch.argsort(expert, stable=True)
    before = torch.cumsum(number, 0) - number
    places = torch.empty_like(expert)
    places[sorted_by] = torch.arange(len(expert), device=expert.device) - before[expert[sorted_by]]
    places += starts[expert]
    tokens = order.clone()
    tokens[places, 0] = (torch.arange(len(expert), device=expert.device) // chosen.shape[1]).to(tokens.dtype)
    return {
        "order": tokens,
        "slot": places.view_as(chosen),
        "groups": torch.stack((starts, number), 1).view(1, -1),
    }


@triton.jit
def _place(
    chosen, counts, order, slot, groups, tokens,
    CHOSEN_STRIDE: tl.constexpr, COUNTS_STRIDE: tl.constexpr, ORDER_STRIDE: tl.constexpr, SLOT_STRIDE: tl.constexpr,
    E: tl.constexpr, BLOCK_E: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCKS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    mine = tl.program_id(0)
    e = tl.arange(0, BLOCK_E)
    total = tl.zeros((BLOCK_E,), dtype=tl.int32)
    before = tl.zeros((BLOCK_E,), dtype=tl.int32)
    for first in range(0, tl.cdiv(tokens, BLOCK_T), BLOCKS):
        b = first + tl.arange(0, BLOCKS)
        live = (b < tl.cdiv(tokens, BLOCK_T))[:, None] & (e < E)[None, :]
        n = tl.load(counts + b.to(tl.int64)[:, None] * COUNTS_STRIDE + e[None, :], mask=live, other=0)
        total += tl.sum(n, 0)
        before += tl.sum(tl.where((b < mine)[:, None], n, 0), 0)
    room = (total + GROUP - 1) // GROUP * GROUP
    start = tl.cumsum(room, 0) - room
    i = tl.arange(0, BLOCK_T * BLOCK_C)
    t = mine * BLOCK_T + i // BLOCK_C
    c = i % BLOCK_C
    live = (t < tokens) & (c < C)
    expert = tl.load(chosen + t.to(tl.int64) * CHOSEN_STRIDE + c, mask=live, other=BLOCK_E)
    hit = (expert[:, None] == e[None, :]).to(tl.int32)
    earlier = tl.cumsum(hit, 0) - hit
    place = tl.sum(hit * (earlier + (start + before)[None, :]), 1)
    tl.store(order + place.to(tl.int64) * ORDER_STRIDE, t, mask=live)
    tl.store(slot + t.to(tl.int64) * SLOT_STRIDE + c, place, mask=live)
    if mine == 0:
        tl.store(groups + 2 * e, start, mask=e < E)
        tl.store(groups + 2 * e + 1, total, mask=e < E)


def plan(forms: Forms, *, sm: int) -> KernelLaunch:
    """Operands chosen, counts, order, slot, groups; see `reference`."""
    chosen, counts = forms["chosen"], forms["counts"]
    assert chosen and counts
    return launch(
        forms,
        function=_place,
        sizes=("tokens",),
        constants={
            **strides(forms, ("chosen", "counts", "order", "slot")),
            "E": counts.width,
            "BLOCK_E": power_of_two(counts.width),
            "C": chosen.width,
            "BLOCK_C": power_of_two(chosen.width),
            "BLOCK_T": TOKENS,
            "BLOCKS": BLOCKS,
            "GROUP": GROUP,
        },
        grid=(Size(symbol="tokens", per=TOKENS),),
    )


SHAPES: list[dict[str, Any]] = [
    {"T": 1, "E": 2, "C": 1},
    {"T": 200, "E": 8, "C": 2},
    {"T": 70, "E": 5, "C": 3},
]


def make_inputs(shape: dict[str, Any], *, device: str, dtype: Any, sm: int = 80) -> Sample:
    """Distinct experts a token, with the counts that `route` would leave; the last expert is never chosen."""
    import torch

    T, E, C = shape["T"], shape["E"], shape["C"]
    chosen = torch.stack([torch.randperm(max(C, E - 1))[:C] for _ in range(T)]).to(device, torch.int32)
    counts = torch.zeros((T, E), dtype=torch.int32, device=device)
    for block, part in enumerate(chosen.split(TOKENS)):
        counts[block] = torch.bincount(part.flatten().long(), minlength=E).to(torch.int32)
    room = slots(C, E).of({"tokens": T})
    return Sample(
        operands={
            "chosen": chosen,
            "counts": counts,
            "order": torch.full((room, 1), -1, dtype=torch.int32, device=device),
            "slot": torch.full((T, C), -1, dtype=torch.int32, device=device),
            "groups": torch.full((1, 2 * E), -1, dtype=torch.int32, device=device),
        },
        writes=("order", "slot", "groups"),
        sizes={"tokens": T},
        attrs={},
    )
