"""Mixture of experts, between its two products: out = act(hidden)·share, share from the router's logits.

Shapes: T tokens, E experts, F width of one expert. share is softmax(logits) for the best ``top_k`` experts (ties: the
lower index), 0 for the others, renormalised where the model does. One program per token and block of F.
Why: routing stays on the device, and the weighted hidden layer makes the sum over experts part of the second product.
"""
# mypy: disable-error-code="no-untyped-def,import-untyped,no-untyped-call,untyped-decorator,misc"

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from bei.cuda_plan import Size
from bei.kernels.activate import Act, act_fn, activated
from bei.kernels.launch import Forms, KernelLaunch, Sample, launch, power_of_two, strides

if TYPE_CHECKING:
    from torch import Tensor


def reference(
    *, logits: "Tensor", hidden: "Tensor", out: "Tensor", act: Act, top_k: int, renormalize: bool
) -> "dict[str, Tensor]":
    """logits [T, E], hidden and out [T, E·F]."""
    import torch

    probs = logits.float().softmax(-1)
    best, chosen = probs.sort(dim=-1, descending=True, stable=True)
    share = torch.zeros_like(probs).scatter(-1, chosen[:, :top_k], best[:, :top_k])
    if renormalize:
        share = share / share.sum(-1, keepdim=True)
    h = activated(hidden, act).view(len(hidden), logits.shape[1], -1)
    return {"out": (h * share[..., None]).flatten(1)}


@triton.jit
def _expert(
    logits, hidden, out,
    LOGITS_STRIDE: tl.constexpr, HIDDEN_STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr, F: tl.constexpr, BLOCK_F: tl.constexpr,
    ACT: tl.constexpr, TOP_K: tl.constexpr, RENORMALIZE: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    expert = tl.program_id(1)
    e = tl.arange(0, BLOCK_E)
    z = tl.load(logits + t * LOGITS_STRIDE + e, mask=e < E, other=-float("inf"))
    p = tl.exp(z - tl.max(z, 0))
    p = p / tl.sum(p, 0)
    better = (p[None, :] > p[:, None]) | ((p[None, :] == p[:, None]) & (e[None, :] < e[:, None]))
    share = tl.where(tl.sum(better.to(tl.int32), 1) < TOP_K, p, 0.0)
    if RENORMALIZE:
        share = share / tl.sum(share, 0)
    mine = tl.sum(tl.where(e == expert, share, 0.0), 0)
    f = tl.program_id(2) * BLOCK_F + tl.arange(0, BLOCK_F)
    at = expert * F + f
    live = f < F
    y = act_fn(tl.load(hidden + t * HIDDEN_STRIDE + at, mask=live, other=0.0).to(tl.float32), ACT) * mine
    tl.store(out + t * OUT_STRIDE + at, y.to(out.dtype.element_ty), mask=live)


def plan(forms: Forms, *, sm: int, act: Act, top_k: int, renormalize: bool) -> KernelLaunch:
    """Operands logits, hidden, out; see `reference`."""
    logits, hidden = forms["logits"], forms["hidden"]
    assert logits and hidden
    width = hidden.width // logits.width
    block = min(1024, power_of_two(width))
    return launch(
        forms,
        function=_expert,
        sizes=(),
        constants={
            **strides(forms, ("logits", "hidden", "out")),
            "E": logits.width,
            "BLOCK_E": power_of_two(logits.width),
            "F": width,
            "BLOCK_F": block,
            "ACT": act,
            "TOP_K": top_k,
            "RENORMALIZE": renormalize,
        },
        grid=(
            Size(symbol="tokens"),
            Size(symbol="one", times=logits.width),
            Size(symbol="one", times=width, per=block),
        ),
    )


SHAPES: list[dict[str, Any]] = [
    {"T": 1, "E": 2, "F": 16, "top_k": 1, "renormalize": False},
    {"T": 7, "E": 8, "F": 40, "top_k": 2, "renormalize": True},
    {"T": 3, "E": 5, "F": 33, "top_k": 2, "renormalize": False},
]


def make_inputs(shape: dict[str, Any], *, device: str, dtype: Any, sm: int = 80) -> Sample:
    """Two experts of the first token tie."""
    import torch

    T, E, F = shape["T"], shape["E"], shape["F"]
    logits = torch.randn(T, E, device=device)
    logits[0, :2] = 3.0
    hidden = torch.randn(T, E * F, device=device).to(dtype)
    return Sample(
        operands={"logits": logits, "hidden": hidden, "out": torch.full_like(hidden, torch.nan)},
        writes=("out",),
        sizes={"tokens": T},
        attrs={"act": "gelu", "top_k": shape["top_k"], "renormalize": shape["renormalize"]},
    )
