"""Query/key preparation: norm of each head (optional), then rotation by the token's position.

Shapes: T tokens, N query and K key heads, H features a head of which the first P are rotated.
Why: norm, rotation and the copy out of the fused q/k/v product are one pass; angles are computed, not read, so one
kernel serves every theta and scaling. Not in place: threads may share elements.
"""
# mypy: disable-error-code="no-untyped-def,import-untyped,no-untyped-call,untyped-decorator,misc"

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from bei.cuda_plan import Size
from bei.kernels.add_norm import Kind, normalise
from bei.kernels.launch import Forms, KernelLaunch, Sample, launch, power_of_two

if TYPE_CHECKING:
    from torch import Tensor

HEADS_A_PROGRAM = 4
TOKENS_A_PROGRAM = 8


def reference(
    *,
    q: "Tensor",
    k: "Tensor",
    index: "Tensor | None",
    owner: "Tensor | None",
    lengths: "Tensor | None",
    frequencies: "Tensor | None",
    q_weight: "Tensor | None",
    q_bias: "Tensor | None",
    k_weight: "Tensor | None",
    k_bias: "Tensor | None",
    q_out: "Tensor",
    k_out: "Tensor",
    head_dim: int,
    rotated: int,
    interleaved: bool,
    kind: Kind,
    eps: float,
    log2_theta: float,
    slope: float,
    offset: float,
    power: float,
) -> "dict[str, Tensor]":
    """q [T, N·H], k [T, K·H]; ``frequencies`` [P/2], or None for dynamic NTK: those of
    theta·max(1, slope·n + offset)^power for the token's text of n tokens. ``rotated`` 0: norm only."""
    import torch

    def turn(x: "Tensor", weight: "Tensor | None", bias: "Tensor | None") -> "Tensor":
        y = normalise(x.float().view(len(x), -1, head_dim), kind, eps, weight, bias)
        if not rotated or index is None:
            return y.flatten(1)
        if frequencies is None:
            assert owner is not None and lengths is not None
            n = lengths.flatten()[owner.flatten().long()].float()
            log2 = log2_theta + power * torch.log2((slope * n + offset).clamp(min=1))
            steps = torch.arange(0, rotated, 2, device=x.device) / rotated
            each = torch.exp2(-steps[None, :] * log2[:, None])
        else:
            each = frequencies.flatten().float()[None, :]
        angle = (index.flatten().float()[:, None] * each)[:, None, :]
        part = y[..., :rotated]
        a, b = (part[..., 0::2], part[..., 1::2]) if interleaved else part.chunk(2, -1)
        c, d = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()
        part = torch.stack((c, d), -1).flatten(-2) if interleaved else torch.cat((c, d), -1)
        return torch.cat((part, y[..., rotated:]), -1).flatten(1)

    return {"q_out": turn(q, q_weight, q_bias), "k_out": turn(k, k_weight, k_bias)}


@triton.jit
def _head(
    x, weight, bias, out, head, t, real, cos, sin,
    X_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr, H: tl.constexpr, P: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_TAIL: tl.constexpr, STEP: tl.constexpr, PARTNER: tl.constexpr,
    KIND: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """One head of a few tokens: pairs (a, b) = features (i·STEP, i·STEP + PARTNER), then the unrotated tail."""
    i = tl.arange(0, BLOCK_P)[None, :]
    pair = i < P // 2
    at = head * H + i * STEP
    live = real[:, None] & pair
    row = t.to(tl.int64)[:, None]
    a = tl.load(x + row * X_STRIDE + at, mask=live, other=0.0).to(tl.float32)
    b = tl.load(x + row * X_STRIDE + at + PARTNER, mask=live, other=0.0).to(tl.float32)
    if BLOCK_TAIL > 0:
        j = P + tl.arange(0, BLOCK_TAIL)[None, :]
        rest = real[:, None] & (j < H)
        c = tl.load(x + row * X_STRIDE + head * H + j, mask=rest, other=0.0).to(tl.float32)
    if KIND != "none":
        mean = tl.zeros_like(tl.sum(a, 1))
        if KIND == "layer":
            mean = tl.sum(a + b, 1)
            if BLOCK_TAIL > 0:
                mean += tl.sum(c, 1)
            mean = mean / H
            a = tl.where(pair, a - mean[:, None], 0.0)
            b = tl.where(pair, b - mean[:, None], 0.0)
        squares = tl.sum(a * a + b * b, 1)
        if BLOCK_TAIL > 0:
            if KIND == "layer":
                c = tl.where(j < H, c - mean[:, None], 0.0)
            squares += tl.sum(c * c, 1)
        scale = tl.rsqrt(squares / H + EPS)[:, None]
        a *= scale * tl.load(weight + i * STEP, mask=pair, other=0.0)
        b *= scale * tl.load(weight + i * STEP + PARTNER, mask=pair, other=0.0)
        if bias is not None:
            a += tl.load(bias + i * STEP, mask=pair, other=0.0)
            b += tl.load(bias + i * STEP + PARTNER, mask=pair, other=0.0)
        if BLOCK_TAIL > 0:
            c *= scale * tl.load(weight + j, mask=j < H, other=0.0)
            if bias is not None:
                c += tl.load(bias + j, mask=j < H, other=0.0)
    tl.store(out + row * OUT_STRIDE + at, (a * cos - b * sin).to(out.dtype.element_ty), mask=live)
    tl.store(out + row * OUT_STRIDE + at + PARTNER, (b * cos + a * sin).to(out.dtype.element_ty), mask=live)
    if BLOCK_TAIL > 0:
        tl.store(out + row * OUT_STRIDE + head * H + j, c.to(out.dtype.element_ty), mask=rest)


@triton.jit
def _rope(
    q, k, index, owner, lengths, frequencies, q_weight, q_bias, k_weight, k_bias, q_out, k_out, tokens,
    Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, Q_OUT_STRIDE: tl.constexpr, K_OUT_STRIDE: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr, H: tl.constexpr, P: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_TAIL: tl.constexpr, HEADS: tl.constexpr,
    STEP: tl.constexpr, PARTNER: tl.constexpr, KIND: tl.constexpr, EPS: tl.constexpr,
    LOG2_THETA: tl.constexpr, SLOPE: tl.constexpr, OFFSET: tl.constexpr, POWER: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    real = t < tokens
    i = tl.arange(0, BLOCK_P)
    if index is None:
        cos = tl.full((BLOCK_T, BLOCK_P), 1.0, dtype=tl.float32)
        sin = tl.zeros((BLOCK_T, BLOCK_P), dtype=tl.float32)
    else:
        if frequencies is not None:
            each = tl.load(frequencies + i, mask=i < P // 2, other=0.0)[None, :]
        else:
            n = tl.load(lengths + tl.load(owner + t, mask=real, other=0)).to(tl.float32)
            log2 = LOG2_THETA + POWER * tl.log2(tl.maximum(SLOPE * n + OFFSET, 1.0))
            each = tl.exp2(-(2 * i / P)[None, :] * log2[:, None])
        angle = tl.load(index + t, mask=real, other=0).to(tl.float32)[:, None] * each
        cos, sin = tl.cos(angle), tl.sin(angle)
    for one in tl.static_range(HEADS):
        head = tl.program_id(1) * HEADS + one
        if head < N:
            _head(
                q, q_weight, q_bias, q_out, head, t, real, cos, sin,
                Q_STRIDE, Q_OUT_STRIDE, H, P, BLOCK_P, BLOCK_TAIL, STEP, PARTNER, KIND, EPS,
            )  # fmt: skip
        elif head < N + K:
            _head(
                k, k_weight, k_bias, k_out, head - N, t, real, cos, sin,
                K_STRIDE, K_OUT_STRIDE, H, P, BLOCK_P, BLOCK_TAIL, STEP, PARTNER, KIND, EPS,
            )  # fmt: skip


def plan(
    forms: Forms,
    *,
    sm: int,
    head_dim: int,
    rotated: int,
    interleaved: bool,
    kind: Kind,
    eps: float,
    log2_theta: float,
    slope: float,
    offset: float,
    power: float,
) -> KernelLaunch:
    """Operands as in `reference`."""
    q, k, q_out, k_out = (forms[name] for name in ("q", "k", "q_out", "k_out"))
    assert q and k and q_out and k_out
    pairs = rotated or head_dim  # a norm alone treats the whole head as pairs turned by nothing
    heads = q.width // head_dim + k.width // head_dim
    return launch(
        forms,
        function=_rope,
        sizes=("tokens",),
        constants={
            "Q_STRIDE": q.stride,
            "K_STRIDE": k.stride,
            "Q_OUT_STRIDE": q_out.stride,
            "K_OUT_STRIDE": k_out.stride,
            "N": q.width // head_dim,
            "K": k.width // head_dim,
            "H": head_dim,
            "P": pairs,
            "BLOCK_T": TOKENS_A_PROGRAM,
            "BLOCK_P": power_of_two(pairs // 2),
            "BLOCK_TAIL": power_of_two(head_dim - pairs) if head_dim > pairs else 0,
            "HEADS": HEADS_A_PROGRAM,
            "STEP": 2 if interleaved else 1,
            "PARTNER": 1 if interleaved else pairs // 2,
            "KIND": kind,
            "EPS": eps,
            "LOG2_THETA": log2_theta,
            "SLOPE": slope,
            "OFFSET": offset,
            "POWER": power,
        },
        grid=(
            Size(symbol="tokens", per=TOKENS_A_PROGRAM),
            Size(symbol="one", times=heads, per=HEADS_A_PROGRAM),
        ),
        warps=4,
    )


SHAPES: list[dict[str, Any]] = [
    {"lengths": (1,), "N": 2, "K": 2, "H": 32, "P": 32},
    {"lengths": (9, 4), "N": 4, "K": 1, "H": 64, "P": 64, "kind": "rms"},
    {"lengths": (9, 4), "N": 3, "K": 3, "H": 40, "P": 16, "interleaved": True},
    {"lengths": (3, 8), "N": 2, "K": 2, "H": 48, "P": 32, "kind": "layer"},
    {"lengths": (3, 80), "N": 2, "K": 2, "H": 32, "P": 32, "ntk": True},
    {"lengths": (5,), "N": 2, "K": 1, "H": 32, "P": 0, "kind": "rms"},
]


def make_inputs(shape: dict[str, Any], *, device: str, dtype: Any, sm: int = 80) -> Sample:
    """q and k as views of one fused buffer; theta 10000."""
    import math

    import torch

    lengths, N, K, H, P = (shape[name] for name in ("lengths", "N", "K", "H", "P"))
    kind, ntk, T = shape.get("kind", "none"), shape.get("ntk", False), sum(lengths)

    def ints(values: Any) -> "Tensor":
        return torch.tensor(values, dtype=torch.int32, device=device).view(-1, 1)

    def vector(wanted: bool) -> "Tensor | None":
        return torch.randn(H, device=device) if wanted else None

    q, k, _ = torch.randn(T, (N + 2 * K) * H, device=device).to(dtype).split([N * H, K * H, K * H], 1)
    steps = torch.arange(0, max(P, 2), 2, device=device) / max(P, 2)
    return Sample(
        operands={
            "q": q,
            "k": k,
            "index": ints([i for n in lengths for i in range(n)]) if P else None,
            "owner": ints([row for row, n in enumerate(lengths) for _ in range(n)]) if ntk else None,
            "lengths": ints(lengths) if ntk else None,
            "frequencies": None if ntk or not P else 10000.0**-steps,
            "q_weight": vector(kind != "none"),
            "q_bias": vector(kind == "layer"),
            "k_weight": vector(kind != "none"),
            "k_bias": vector(kind == "layer"),
            "q_out": torch.full((T, N * H), torch.nan, device=device, dtype=dtype),
            "k_out": torch.full((T, K * H), torch.nan, device=device, dtype=dtype),
        },
        writes=("q_out", "k_out"),
        sizes={"tokens": T},
        attrs={
            "head_dim": H,
            "rotated": P,
            "interleaved": shape.get("interleaved", False),
            "kind": kind,
            "eps": 1e-6,
            "log2_theta": math.log2(10000.0),
            "slope": 2 / 20,
            "offset": -1.0,
            "power": P / (P - 2) if P else 0.0,
        },
    )
