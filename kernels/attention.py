"""Variable-length attention over packed tokens: softmax(cap(scale·q·kᵀ) + bias)·v within each text.

Shapes: T tokens, N heads, K key/value heads, H features a head, W work items. One program per work item and head; an
item is (first token, length, first query, 0), so short and long texts share a launch and no program idles on padding.
Scores live in registers (FlashAttention's running softmax, fp32): unfused they would be N·L² values a text.
Full batches on SM90 have a form in CUDA C++ (`bei.kernels.hopper_attention`).
"""
# mypy: disable-error-code="no-untyped-def,import-untyped,no-untyped-call,untyped-decorator,misc"

from typing import TYPE_CHECKING, Any, Literal

import triton
import triton.language as tl

from bei.cuda_plan import Size
from bei.kernels import hopper_attention
from bei.kernels.launch import Forms, KernelLaunch, Sample, launch, power_of_two

if TYPE_CHECKING:
    from torch import Tensor

Bias = Literal["alibi", "distance"]
LOG2E = 1.4426950408889634


def reference(
    *,
    q: "Tensor",
    k: "Tensor",
    v: "Tensor",
    work: "Tensor",
    bias: "Tensor | None",
    out: "Tensor",
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    bias_kind: Bias | None,
) -> "dict[str, Tensor]":
    """q [T, N·H], k, v [T, K·H]. ``bias``: ALiBi slopes [N], or [N, 2R + 1] by distance key − query clipped to ±R."""
    import torch

    result = out.float().clone()
    for start, length in {(int(item[0]), int(item[1])) for item in work if item[1] > 0}:
        rows = slice(start, start + length)
        q_NLH = q[rows].float().view(length, heads, head_dim).transpose(0, 1)
        k_NLH, v_NLH = (
            x[rows]
            .float()
            .view(length, kv_heads, head_dim)
            .transpose(0, 1)
            .repeat_interleave(heads // kv_heads, 0)
            for x in (k, v)
        )
        scores = q_NLH @ k_NLH.transpose(1, 2) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        at = torch.arange(length, device=q.device)
        away = at[None, :] - at[:, None]
        if bias is not None and bias_kind == "alibi":
            scores = scores - bias.view(-1, 1, 1) * away.abs()
        elif bias is not None:
            reach = bias.shape[1] // 2
            scores = scores + bias[:, away.clamp(-reach, reach) + reach]
        hidden = torch.zeros_like(away, dtype=torch.bool)
        if causal:
            hidden |= away > 0
        if window is not None:
            hidden |= away.abs() > window
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        result[rows] = (weights @ v_NLH).transpose(0, 1).flatten(1)
    return {"out": result}


@triton.jit
def _block(
    acc, peak, total, q, k, v, bias, start, length, rows, begin, end, head,
    K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, H: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr,
    SCALE: tl.constexpr, CAP: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, REACH: tl.constexpr,
    ALIBI: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Keys begin..end for one tile of queries. Without MASKED every key of a tile is visible to every query."""
    h = tl.arange(0, BLOCK_H)
    for first in range(begin, end, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        at = (start + n).to(tl.int64)
        live = (n < length)[:, None] & (h < H)[None, :]
        if MASKED or H != BLOCK_H:
            k_NH = tl.load(k + at[:, None] * K_STRIDE + h[None, :], mask=live, other=0.0)
            v_NH = tl.load(v + at[:, None] * V_STRIDE + h[None, :], mask=live, other=0.0)
        else:
            k_NH = tl.load(k + at[:, None] * K_STRIDE + h[None, :])
            v_NH = tl.load(v + at[:, None] * V_STRIDE + h[None, :])
        s = tl.dot(q, tl.trans(k_NH), input_precision="ieee")
        # scores count in powers of two; SCALE waits for the exponent's own multiply-add where nothing is added first
        LATE: tl.constexpr = CAP == 0 and REACH < 0
        unit: tl.constexpr = SCALE * 1.4426950408889634 if LATE else 1.0
        if CAP > 0:
            s = CAP * (1 - 2 / (tl.exp(2 * SCALE / CAP * s) + 1)) * 1.4426950408889634
        elif not LATE:
            s = s * (SCALE * 1.4426950408889634)
        if REACH >= 0 or MASKED:
            away = n[None, :] - rows[:, None]
        if ALIBI:
            s -= tl.load(bias + head) * 1.4426950408889634 * tl.abs(away)
        elif REACH >= 0:
            clipped = tl.minimum(tl.maximum(away, -REACH), REACH) + REACH
            s += tl.load(bias + head * (2 * REACH + 1) + clipped) * 1.4426950408889634
        if MASKED:
            seen = (n < length)[None, :]
            if CAUSAL:
                seen = seen & (away <= 0)
            if WINDOW >= 0:
                seen = seen & (tl.abs(away) <= WINDOW)
            # A tile may hide all keys from a row that sees others later. `peak` is finite from the start, so infinity is
            # safe here, and a finite number is not: times `unit`, in one fused multiply-add with its own rounded product,
            # it leaves a remainder whose power of two may be infinite.
            s = tl.where(seen, s, -float("inf"))
        higher = tl.maximum(peak, tl.max(s, 1) * unit)
        shrink = tl.exp2(peak - higher)
        p = tl.exp2(s * unit - higher[:, None])
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        acc = tl.dot(p.to(v_NH.dtype), v_NH, acc, input_precision="ieee")
        peak = higher
    return acc, peak, total


@triton.jit
def _attention(
    q, k, v, work, bias, out, items,
    Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr,
    H: tl.constexpr, GROUP: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SCALE: tl.constexpr, CAP: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, REACH: tl.constexpr,
    ALIBI: tl.constexpr,
):  # fmt: skip
    """How many ``items`` there are only Hopper's form needs, whose blocks take one after another."""
    head, item = tl.program_id(0), tl.program_id(1)  # a text's heads run together: they share memory pages
    start = tl.load(work + item * 4)
    length = tl.load(work + item * 4 + 1)
    first = tl.load(work + item * 4 + 2)
    if first >= length:  # items past the batch's own are (0, 0, 0)
        return

    h = tl.arange(0, BLOCK_H)
    rows = first + tl.arange(0, BLOCK_M)
    live = (rows < length)[:, None] & (h < H)[None, :]
    at = (start + rows).to(tl.int64)
    q_MH = tl.load(q + at[:, None] * Q_STRIDE + head * H + h[None, :], mask=live, other=0.0)
    k += (head // GROUP) * H
    v += (head // GROUP) * H
    acc = tl.zeros((BLOCK_M, BLOCK_H), dtype=tl.float32)
    peak = tl.full((BLOCK_M,), -1e30, dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)

    begin, end, whole = 0, length, length // BLOCK_N * BLOCK_N
    if CAUSAL:
        end = tl.minimum(length, first + BLOCK_M)
        whole = first // BLOCK_N * BLOCK_N
    if WINDOW >= 0:
        begin = tl.maximum(0, first - WINDOW) // BLOCK_N * BLOCK_N
        end = tl.minimum(end, first + BLOCK_M + WINDOW)
        whole = begin
    if WINDOW < 0:
        acc, peak, total = _block(
            acc, peak, total, q_MH, k, v, bias, start, length, rows, begin, whole, head,
            K_STRIDE, V_STRIDE, H, BLOCK_H, BLOCK_N, SCALE, CAP, CAUSAL, WINDOW, REACH, ALIBI, False,
        )  # fmt: skip
    acc, peak, total = _block(
        acc, peak, total, q_MH, k, v, bias, start, length, rows, whole, end, head,
        K_STRIDE, V_STRIDE, H, BLOCK_H, BLOCK_N, SCALE, CAP, CAUSAL, WINDOW, REACH, ALIBI, True,
    )  # fmt: skip
    y = acc / total[:, None]
    tl.store(out + at[:, None] * OUT_STRIDE + head * H + h[None, :], y.to(out.dtype.element_ty), mask=live)


BIG_SHARED = (90, 100, 103)
"""SMs with 227 KiB of shared memory a block; the others have 99 (SM80: 163)."""


def tile(sm: int, head_dim: int, *, fp32: bool) -> tuple[int, int, int, int]:
    """Queries and keys of a tile, warps, stages. Measured on SM90; elsewhere what fits.

    64 queries leave room for several programs a multiprocessor, which hides the latency of short texts; heads wider
    than 128 need more queries to reuse keys.
    """
    queries = query_block(sm, head_dim)
    if fp32:
        return queries, 16, 4, 1
    if head_dim <= 64:
        return queries, 32 if head_dim <= 32 else 64, 4, 3
    if head_dim <= 128:
        return queries, 32, 4, 2
    return (queries, 64, 8, 2) if sm in BIG_SHARED else (queries, 32, 4, 1)


def query_block(sm: int, head_dim: int) -> int:
    """Queries a work item covers."""
    return 128 if head_dim > 128 and sm in BIG_SHARED else 64


def plan(forms: Forms, *, sm: int, **attrs: Any) -> KernelLaunch:
    """Operands q, k, v, work, bias, out, and attributes; see `reference`."""
    return hopper_attention.plan(forms, sm=sm, **attrs) or _programs(forms, sm=sm, **attrs)


def few(forms: Forms, *, sm: int, **attrs: Any) -> dict[int, KernelLaunch]:
    """`plan` for small batches, by the work items to which it serves."""
    most = hopper_attention.FEW.get(attrs["head_dim"], 0) // attrs["heads"]
    own = hopper_attention.plan(forms, sm=sm, **attrs)
    return {most: _programs(forms, sm=sm, **attrs)} if own and most else {}


def _programs(
    forms: Forms,
    *,
    sm: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    bias_kind: Bias | None,
) -> KernelLaunch:
    q, k, v, bias, out = (forms[name] for name in ("q", "k", "v", "bias", "out"))
    assert q and k and v and out
    queries, keys, warps, stages = tile(sm, head_dim, fp32=q.dtype == "f32")
    return launch(
        forms,
        function=_attention,
        sizes=("work",),
        constants={
            "Q_STRIDE": q.stride,
            "K_STRIDE": k.stride,
            "V_STRIDE": v.stride,
            "OUT_STRIDE": out.stride,
            "H": head_dim,
            "GROUP": heads // kv_heads,
            "BLOCK_H": max(16, power_of_two(head_dim)),
            "BLOCK_M": queries,
            "BLOCK_N": keys,
            "SCALE": scale,
            "CAP": softcap or 0.0,
            "CAUSAL": causal,
            "WINDOW": -1 if window is None else window,
            "REACH": -1 if bias is None else bias.width // 2 if bias_kind == "distance" else 0,
            "ALIBI": bias_kind == "alibi",
        },
        grid=(Size(symbol="one", times=heads), Size(symbol="work")),
        warps=warps,
        stages=stages,
    )


SHAPES: list[dict[str, Any]] = [
    {"lengths": (1, 7, 64, 33), "heads": 2},
    {"lengths": (130, 65), "heads": 4, "kv_heads": 2, "head_dim": 64, "causal": True},
    {"lengths": (1, 150, 70), "heads": 2, "window": 8},
    {"lengths": (150, 3), "heads": 2, "window": 20, "causal": True},
    {"lengths": (70, 5), "heads": 3, "bias_kind": "alibi"},
    {"lengths": (70, 5), "heads": 2, "bias_kind": "distance"},
    {"lengths": (40, 90), "heads": 2, "softcap": 5.0, "head_dim": 48},
    {"lengths": (9, 70), "heads": 2, "kv_heads": 1, "head_dim": 128},
    {"lengths": (34,), "heads": 1, "head_dim": 256},
    {"lengths": (9, 34), "heads": 2, "head_dim": 8, "window": 200},
    {"lengths": (150, 70), "heads": 2, "head_dim": 16, "window": 4},
    {"lengths": (150, 70), "heads": 2, "head_dim": 64, "window": 4},
    {"lengths": (1, 63, 64, 65, 128, 129), "heads": 2, "head_dim": 64},
    {"lengths": (129, 200, 1), "heads": 3, "kv_heads": 1, "head_dim": 256, "window": 100},
]
"""Odd lengths, a tile and a bit, every feature; ``lengths`` a text."""


def work_items(lengths: tuple[int, ...], block: int, spare: int = 0) -> list[tuple[int, int, int, int]]:
    """(first token, length, first query, 0) for each block of queries, then ``spare`` empty ones."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    items = [(s, n, first, 0) for s, n in zip(starts, lengths, strict=True) for first in range(0, n, block)]
    return items + [(0, 0, 0, 0)] * spare


def make_inputs(shape: dict[str, Any], *, device: str, dtype: Any, sm: int = 80) -> Sample:
    """q, k, v as views of one fused buffer, NaN behind the last token, two spare work items."""
    import torch

    attrs: dict[str, Any] = {"kv_heads": shape["heads"], "head_dim": 32, "causal": False, "window": None}
    attrs |= {"softcap": None, "bias_kind": None} | shape
    lengths = attrs.pop("lengths")
    N, K, H = attrs["heads"], attrs["kv_heads"], attrs["head_dim"]
    attrs["scale"] = H**-0.5
    tokens = sum(lengths)
    fused = torch.randn(tokens + 5, (N + 2 * K) * H, device=device).to(dtype)
    fused[tokens:] = torch.nan
    bias = None
    if attrs["bias_kind"] == "alibi":
        bias = torch.rand(N, device=device)
    elif attrs["bias_kind"] == "distance":
        bias = torch.randn(N, 2 * 20 + 1, device=device)
    work = torch.tensor(work_items(lengths, query_block(sm, H), 2), dtype=torch.int32, device=device)
    q, k, v = fused.split([N * H, K * H, K * H], 1)
    out = torch.zeros(tokens + 5, N * H, device=device, dtype=dtype)
    return Sample(
        operands={"q": q, "k": k, "v": v, "work": work, "bias": bias, "out": out},
        writes=("out",),
        sizes={"work": len(work), "tokens": tokens + 5},
        attrs=attrs,
    )
