"""The encoder run eagerly in PyTorch: the reference for tests, calibration and drift search.

Padded layout [B, L]. Storage in fp32 gives the definition; any other rounds every value that an engine of that
precision would store, and computes in fp32 what engines compute in fp32 (docs/decisions/0004-fp16-policy.md).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bei.adapters.config import Act, DynamicNtk, EncoderConfig, Moe, NormKind, RelativeBuckets, Rope
from bei.adapters.head import Head, Pooling
from bei.compiler import positions
from bei.compiler.encoder import run
from bei.compiler.ops import STREAM_NORMS, Attention, Index
from bei.compiler.precision.folding import Folded
from bei.compiler.precision.policy import PLAIN, Policy, Wide, unit_of
from bei.compiler.weights import Weight

Probe = Callable[[str, Tensor], None]
TORCH_DTYPES: dict[Wide, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """What an engine writes to memory: ``body`` values, the residual ``stream``, a post-norm encoder's ``normed`` stream
    (otherwise fp32), and units that are islands."""

    body: torch.dtype = torch.float32
    stream: torch.dtype = torch.float32
    normed: torch.dtype = torch.float32
    islands: Mapping[str, Wide] = field(default_factory=dict)

    def of(self, site: str) -> torch.dtype:
        """The dtype of a site's stored value."""
        wide = self.islands.get(unit_of(site) or "")
        return self.body if wide is None else TORCH_DTYPES[wide]


FULL = Storage()
"""fp32 throughout: the definition."""


def engine_storage(cfg: EncoderConfig, body: torch.dtype, policy: Policy) -> Storage:
    """What GPU engines of ``body`` precision write: a post-norm encoder's stream like any other value, another's in fp32 or,
    where the policy allows that, as the narrowest of them does."""
    return Storage(
        body=body,
        stream=torch.float16 if policy.fp16_stream else torch.float32,
        normed=body if cfg.placement == "post" else torch.float32,
        islands=policy.islands,
    )


KEPT_BYTES = 1 << 30


class Tensors:
    """Weights as fp32 tensors, rounded to a storage type; the first GiB of them is kept for the next run."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, float, torch.dtype], Tensor] = {}
        self._room = KEPT_BYTES

    def get(self, weight: Weight, dtype: torch.dtype = torch.float32) -> Tensor:
        key = (weight.name, weight.scale, dtype)
        if key in self._kept:
            return self._kept[key]
        tensor = torch.from_numpy(np.array(weight.float32())).to(dtype).float()
        if tensor.nbytes <= self._room:
            self._kept[key] = tensor
            self._room -= tensor.nbytes
        return tensor


ACTS: dict[Act, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}


class TorchOps:
    """`Ops` over tensors for one batch.

    ids, mask, types int64 [B, L]; ``prompt`` int64 [B], tokens that pooling skips. ``probe`` sees every site's values
    (name, fp32 tensor), for range audits and per-layer comparison.
    """

    def __init__(
        self,
        weights: Mapping[str, Weight],
        ids: Tensor,
        mask: Tensor,
        *,
        types: Tensor | None = None,
        prompt: Tensor | None = None,
        position_pad: int | None = None,
        storage: Storage = FULL,
        probe: Probe | None = None,
        tensors: Tensors | None = None,
    ) -> None:
        self.weights, self.ids, self.mask = weights, ids, mask.bool()
        self.tensors = tensors or Tensors()
        self.types = torch.zeros_like(ids) if types is None else types
        self.prompt = torch.zeros(len(ids), dtype=torch.int64) if prompt is None else prompt
        self.position_pad, self.storage, self.probe = position_pad, storage, probe

    @cached_property
    def positions(self) -> Tensor:
        """[B, L]: rows of the learned position table."""
        if self.position_pad is None:
            return torch.arange(self.ids.shape[1]).expand_as(self.ids)
        real = (self.ids != self.position_pad).long()
        return real.cumsum(1) * real + self.position_pad

    def weight(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """The value, rounded to ``dtype``, in fp32."""
        return self.tensors.get(self.weights[name], dtype)

    def bias(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return self.weight(f"{name}.bias", dtype) if f"{name}.bias" in self.weights else None

    def store(self, x: Tensor, site: str) -> Tensor:
        """Round to what the site stores, as writing to memory would; the result is fp32 again."""
        if self.probe:
            self.probe(site, x)
        return x.to(self.storage.of(site)).float()

    def embed(self, name: str, index: Index, rows: int, dim: int) -> Tensor:
        where = {"tokens": self.ids, "types": self.types, "positions": self.positions}[index]
        rows_BLD = torch.from_numpy(self.weights[f"{name}.weight"].rows(where.numpy()))
        return rows_BLD.to(self.storage.body).float() if index == "tokens" else rows_BLD

    def row(self, name: str, dim: int) -> Tensor:
        return self.weight(f"{name}.weight")[0]

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        stream = self.storage.stream
        return (a.to(stream).float() + b.to(stream).float()).to(stream).float()

    def scale(self, x: Tensor, factor: float) -> Tensor:
        return x * factor

    def norm(self, x: Tensor, name: str, kind: NormKind, eps: float, dim: int) -> Tensor:
        weight = self.weight(f"{name}.weight")
        if self.probe:
            self.probe(f"{name}.in", x)
        if kind == "layer":
            y = F.layer_norm(x, (dim,), weight, self.bias(name), eps)
        else:
            y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
        if self.probe:
            self.probe(name, y)
        return y.to(self.storage.normed).float() if name.endswith(STREAM_NORMS) else y

    def linear(self, x: Tensor, names: Sequence[str], outs: Sequence[int], dim: int) -> list[Tensor]:
        return [self._linear(x, name) for name in names]

    def _linear(self, x: Tensor, name: str) -> Tensor:
        dtype = self.storage.of(name)
        y = self.store(x.to(dtype).float() @ self.weight(f"{name}.weight", dtype).T, name)
        bias = self.bias(name, dtype)
        return y if bias is None else self.store(y + bias, name)

    def split(self, xs: Sequence[Tensor], heads: Sequence[int], head_dim: int) -> list[Tensor]:
        return [x.reshape(*x.shape[:-1], count, head_dim) for x, count in zip(xs, heads, strict=True)]

    def rope(self, x: Tensor, rope: Rope, head_dim: int) -> Tensor:
        cos, sin = self._angles(rope)
        turned, kept = x.float()[..., : rope.dim], x.float()[..., rope.dim :]
        if rope.interleaved:
            a, b = turned[..., 0::2], turned[..., 1::2]
            turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        else:
            a, b = turned.chunk(2, -1)
            turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        return torch.cat((turned, kept), -1)

    def _angles(self, rope: Rope) -> tuple[Tensor, Tensor]:
        """cos, sin [B or 1, L, 1, dim/2]."""
        at = torch.arange(self.ids.shape[1], dtype=torch.float32)[None, :, None]
        if isinstance(rope.scaling, DynamicNtk):
            grow = positions.ntk_growth(rope)
            n = self.mask.sum(1).float()
            theta = rope.theta * (grow.slope * n + grow.offset).clamp(min=1) ** grow.power
            exponents = torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim
            freq = (1.0 / theta[:, None] ** exponents)[:, None]
        else:
            freq = torch.from_numpy(positions.inv_freq(rope))[None, None]
        angle = (at * freq)[:, :, None]
        return angle.cos(), angle.sin()

    def attention(self, q: Tensor, k: Tensor, v: Tensor, spec: Attention, site: str) -> Tensor:
        group = spec.heads // spec.kv_heads
        q = self.store(q, f"{site}.q").transpose(1, 2)
        k = self.store(k, f"{site}.k").repeat_interleave(group, 2).transpose(1, 2)
        v = self.store(v, f"{site}.v").repeat_interleave(group, 2).transpose(1, 2)
        scores = q @ k.transpose(2, 3) * spec.scale
        if spec.softcap is not None:
            scores = spec.softcap * torch.tanh(scores / spec.softcap)
        bias = self._bias(spec)
        if bias is not None:
            scores = scores + bias
        weights = scores.masked_fill(~self._visible(spec), -1e30).softmax(-1)
        # a padded key's weight is exactly 0, but 0 · NaN is NaN: what lies in the padding must not matter
        v = v.masked_fill(~self.mask[:, None, :, None], 0)
        return self.store((weights @ v).transpose(1, 2).flatten(2), site)

    def _visible(self, spec: Attention) -> Tensor:
        """[B, 1, L, L]; every query sees at least itself."""
        i = torch.arange(self.ids.shape[1])
        distance = i[:, None] - i[None, :]
        seen = torch.ones_like(distance, dtype=torch.bool)
        if spec.causal:
            seen &= distance >= 0
        if spec.window is not None:
            seen &= distance.abs() <= spec.window
        return (seen & self.mask[:, None, None, :]) | (distance == 0)

    def _bias(self, spec: Attention) -> Tensor | None:
        """[N, L, L]"""
        if spec.bias is None:
            return None
        length = self.ids.shape[1]
        i = torch.arange(length)
        if isinstance(spec.bias, RelativeBuckets):
            bucket = torch.from_numpy(positions.bucket_of_distance(spec.bias, length))
            table = self.weight("embed.buckets.weight")
            return table[bucket[i[None, :] - i[:, None] + length - 1]].permute(2, 0, 1)
        slopes = torch.from_numpy(positions.alibi_slopes(spec.heads))
        return -slopes[:, None, None] * (i[None, :] - i[:, None]).abs()

    def activation(self, x: Tensor, act: Act, site: str | None = None) -> Tensor:
        y = ACTS[act](x)
        return y if site is None else self.store(y, site)

    def gate(self, gate: Tensor, up: Tensor, act: Act, site: str) -> Tensor:
        return self.store(ACTS[act](gate) * up, site)

    def moe(self, x: Tensor, name: str, moe: Moe, act: Act, dim: int, ffn: int) -> Tensor:
        dtype = self.storage.of(name)
        x = x.to(dtype).float()
        probs = (x @ self.weight(f"{name}.router.weight").T).softmax(-1)
        share, chosen = probs.topk(moe.top_k, dim=-1)
        if moe.renormalize:
            share = share / share.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        w1 = self.weight(f"{name}.w1.weight", dtype).reshape(moe.experts, ffn, dim)
        w2 = self.weight(f"{name}.w2.weight", dtype).reshape(moe.experts, ffn, dim)
        for expert in range(moe.experts):
            weight = (share * (chosen == expert)).sum(-1, keepdim=True)
            hidden = self.store(ACTS[act](self.store(x @ w1[expert].T, f"{name}.w1")), f"{name}.hidden")
            out = out + weight * (hidden @ w2[expert])
        bias = self.bias(name)
        return self.store(out if bias is None else out + bias, name)

    def pool(self, x: Tensor, pooling: Pooling, include_prompt: bool) -> Tensor:
        x = x.float()
        at = torch.arange(x.shape[1])[None, :]
        keep = self.mask if include_prompt else self.mask & (at >= self.prompt[:, None])
        if pooling == "cls":
            return x[torch.arange(len(x)), keep.int().argmax(1)]
        if pooling == "last":
            kept = x.masked_fill(~keep[..., None], 0)
            return kept[torch.arange(len(x)), (at * self.mask).amax(1)]
        if pooling == "max":
            return x.masked_fill(~keep[..., None], -1e9).amax(1)
        weight = keep.float() * (at + 1) if pooling == "weighted_mean" else keep.float()
        total = (x.masked_fill(~keep[..., None], 0) * weight[..., None]).sum(1)
        count = weight.sum(1, keepdim=True).clamp(min=1e-9)
        return total / (count.sqrt() if pooling == "mean_sqrt_len" else count)

    def concat(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts), -1)

    def to_float(self, x: Tensor) -> Tensor:
        return x.float()

    def dense(self, x: Tensor, name: str, out: int, dim: int) -> Tensor:
        return F.linear(x, self.weight(f"{name}.weight"), self.bias(name))

    def normalize(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)

    def tokens(self, x: Tensor) -> Tensor:
        return x


def run_torch(
    cfg: EncoderConfig,
    head: Head,
    weights: Mapping[str, Weight],
    ids: Tensor,
    mask: Tensor,
    *,
    types: Tensor | None = None,
    prompt: Tensor | None = None,
    storage: Storage = FULL,
    policy: Policy = PLAIN,
    probe: Probe | None = None,
    tensors: Tensors | None = None,
) -> Tensor:
    """The head's output in fp32 for ids, mask int64 [B, L]; ``policy``'s scales are folded in (its islands are part
    of ``storage``). ``tensors`` shared by several runs of one model spare them reading its weights again."""
    own = dict(weights)
    ops = TorchOps(
        own,
        ids,
        mask,
        types=types,
        prompt=prompt,
        position_pad=cfg.position_pad,
        storage=storage,
        probe=probe,
        tensors=tensors,
    )
    with torch.inference_mode():
        return run(cfg, head, Folded(ops, own, policy, cfg)).value
