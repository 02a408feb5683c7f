"""Pooling of packed tokens: one vector a text, in fp32.

Shapes: B texts, T tokens, D width. One program per text and block of features, so that one long text does not
wait for a single program. Why: the mask and the padded copy that pooling in a framework needs are never built.
"""
# mypy: disable-error-code="no-untyped-def,import-untyped,no-untyped-call,untyped-decorator,misc"

from typing import TYPE_CHECKING, Any, Literal

import triton
import triton.language as tl

from bei.cuda_plan import Size
from bei.kernels.launch import Forms, KernelLaunch, Sample, launch, power_of_two

if TYPE_CHECKING:
    from torch import Tensor

Pooling = Literal["cls", "mean", "max", "mean_sqrt_len", "weighted_mean", "last"]


def reference(
    *,
    x: "Tensor",
    starts: "Tensor",
    lengths: "Tensor",
    prompts: "Tensor | None",
    out: "Tensor",
    pooling: Pooling,
) -> "dict[str, Tensor]":
    """x [T, D]; starts, lengths, prompts [B, 1]: ``prompts`` tokens are left out, so that cls is the first token after
    them. A text that is all prompt gives 0 (max: −1e9; cls: its first token)."""
    import torch

    rows = []
    for b, (start, length) in enumerate(
        zip(starts.flatten().tolist(), lengths.flatten().tolist(), strict=True)
    ):
        skipped = 0 if prompts is None else min(int(prompts[b]), length)
        if pooling == "cls" and skipped == length:
            skipped = 0
        kept = x[start + skipped : start + length].float()
        if pooling in ("cls", "last"):
            chosen = 0 if pooling == "cls" else -1
            rows.append(kept[chosen] if len(kept) else torch.zeros(x.shape[1], device=x.device))
        elif pooling == "max":
            rows.append(torch.cat((kept, kept.new_full((1, x.shape[1]), -1e9))).amax(0))
        else:
            weight = (
                kept.new_ones(len(kept))
                if pooling != "weighted_mean"
                else torch.arange(skipped + 1, length + 1, device=x.device).float()
            )
            count = weight.sum().clamp(min=1e-9)
            total = (kept * weight[:, None]).sum(0)
            rows.append(total / (count.sqrt() if pooling == "mean_sqrt_len" else count))
    return {"out": torch.stack(rows)}


@triton.jit
def _pool(
    x, starts, lengths, prompts, out,
    X_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr, POOLING: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    start = tl.load(starts + b).to(tl.int64)
    length = tl.load(lengths + b)
    live = d < D
    first = 0
    if prompts is not None:
        first = tl.minimum(tl.load(prompts + b), length)
    if POOLING == "cls":
        at = start + tl.where(first < length, first, 0)
        y = tl.load(x + at * X_STRIDE + d, mask=d < tl.minimum(length, 1) * D, other=0.0).to(tl.float32)
    elif POOLING == "last":
        at = start + length - 1
        y = tl.load(x + at * X_STRIDE + d, mask=d < tl.minimum(length - first, 1) * D, other=0.0).to(
            tl.float32
        )
    else:
        acc = tl.full((BLOCK_T, BLOCK_D), -1e9 if POOLING == "max" else 0.0, dtype=tl.float32)
        for begin in range(first, length, BLOCK_T):
            t = begin + tl.arange(0, BLOCK_T)
            kept = (t < length)[:, None] & live[None, :]
            at = (start + t)[:, None] * X_STRIDE + d[None, :]
            if POOLING == "max":
                acc = tl.maximum(acc, tl.load(x + at, mask=kept, other=-1e9).to(tl.float32))
            else:
                part = tl.load(x + at, mask=kept, other=0.0).to(tl.float32)
                if POOLING == "weighted_mean":
                    part *= (t + 1).to(tl.float32)[:, None]
                acc += part
        if POOLING == "max":
            y = tl.max(acc, 0)
        else:
            count = (length - first).to(tl.float32)
            if POOLING == "weighted_mean":
                count = count * (first + 1 + length).to(tl.float32) / 2
            count = tl.maximum(count, 1e-9)
            y = tl.sum(acc, 0) / (tl.sqrt(count) if POOLING == "mean_sqrt_len" else count)
    tl.store(out + b * OUT_STRIDE + d, y, mask=live)


def plan(forms: Forms, *, sm: int, pooling: Pooling) -> KernelLaunch:
    """Operands x, starts, lengths, prompts, out; see `reference`."""
    x, out = forms["x"], forms["out"]
    assert x and out
    block = min(64, power_of_two(x.width))
    return launch(
        forms,
        function=_pool,
        sizes=(),
        constants={
            "X_STRIDE": x.stride,
            "OUT_STRIDE": out.stride,
            "D": x.width,
            "BLOCK_D": block,
            "BLOCK_T": 32,
            "POOLING": pooling,
        },
        grid=(Size(symbol="rows"), Size(symbol="one", times=x.width, per=block)),
    )


SHAPES: list[dict[str, Any]] = [
    {"lengths": (1, 40, 7), "D": 96, "pooling": pooling, "prompts": prompts}
    for pooling in ("cls", "mean", "max", "mean_sqrt_len", "weighted_mean", "last")
    for prompts in (None, (0, 5, 7))
]


def make_inputs(shape: dict[str, Any], *, device: str, dtype: Any, sm: int = 80) -> Sample:
    """Tokens behind the last text are NaN; a fourth, empty text as a graph's spare row has it."""
    import torch

    lengths, D = (*shape["lengths"], 0), shape["D"]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]

    def ints(values: Any) -> "Tensor":
        return torch.tensor(values, dtype=torch.int32, device=device).view(-1, 1)

    x = torch.randn(sum(lengths) + 3, D, device=device).to(dtype)
    x[sum(lengths) :] = torch.nan
    return Sample(
        operands={
            "x": x,
            "starts": ints(starts),
            "lengths": ints(lengths),
            "prompts": None if shape["prompts"] is None else ints((*shape["prompts"], 0)),
            "out": torch.full((len(lengths), D), torch.nan, device=device),
        },
        writes=("out",),
        sizes={"rows": len(lengths)},
        attrs={"pooling": shape["pooling"]},
    )
