"""Range folding: the same function with smaller numbers in the places that overflow FP16.

An interpreter around an interpreter. Every value carries the power of two by which what is stored differs from what
is meant; linears, norms and attention undo it for free, because

    (W·b/a)·(a·x) = b·(W·x)                     a linear takes any scale in and gives any scale out
    norm(a·x; a²·eps) = norm(x; eps)            a norm forgets its input's scale (LayerNorm and RMSNorm)
    softmax((s/(a·b))·(a·q)·(b·k))·(c·v)        attention takes q's and k's into its own scale, v's passes through
    act(g)·(b·u) = b·(act(g)·u)                 a gate passes the scale of its linear half

So nothing is added to the graph: weights (constants) are multiplied, eps and the attention scale change. Powers of two
are exact in floating point, short of under- and overflow.
"""

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic

from bei.adapters.config import Act, EncoderConfig, Moe, NormKind, Rope
from bei.adapters.head import Pooling
from bei.compiler.ops import Attention, Index, Ops, V
from bei.compiler.precision.policy import Policy
from bei.compiler.weights import Weight


@dataclass(frozen=True, slots=True)
class Scaled(Generic[V]):
    """``value`` is ``factor`` times what is meant."""

    value: V
    factor: float


class Folded(Generic[V]):
    """`Ops` over scaled values, in terms of an inner interpreter that reads the same ``weights``.

    ``weights`` is changed in place as the encoder is walked: give a copy of the mapping, shared with ``inner``.
    """

    def __init__(
        self, inner: Ops[V], weights: MutableMapping[str, Weight], policy: Policy, cfg: EncoderConfig
    ) -> None:
        self.inner, self.weights, self.policy, self.cfg = inner, weights, policy, cfg

    def _target(self, site: str) -> float:
        """The scale that a linear's or norm's output must have: its own, or the stream's where it joins it."""
        if site in self.policy.scales:
            return self.policy.scales[site]
        name, last = site.rsplit(".", 1)[-1], f"layers.{len(self.cfg.layers) - 1}.ffn_norm"
        joins = {
            "post": ("o", "down", "moe", "attn_inner_norm", "attn_norm", "ffn_norm"),
            "pre": ("o", "down", "moe"),
            "sandwich": ("attn_out_norm", "ffn_out_norm"),
        }[self.cfg.placement]
        if site == "embed.norm" or (site.startswith("layers.") and name in joins):
            finished = site == last and self.cfg.placement == "post" and not self.cfg.final_norm
            return 1.0 if finished else self.policy.stream
        return 1.0

    def _multiply(self, name: str, factor: float) -> None:
        if factor != 1.0 and name in self.weights:
            weight = self.weights[name]
            self.weights[name] = replace(weight, scale=weight.scale * factor)

    # --- embeddings: tables take the scale, unless a norm follows and forgets it

    @property
    def _embedded(self) -> float:
        return 1.0 if self.cfg.embed_norm else self.policy.stream

    def embed(self, name: str, index: Index, rows: int, dim: int) -> Scaled[V]:
        self._multiply(f"{name}.weight", self._embedded)
        return Scaled(self.inner.embed(name, index, rows, dim), self._embedded)

    def row(self, name: str, dim: int) -> Scaled[V]:
        self._multiply(f"{name}.weight", self._embedded)
        return Scaled(self.inner.row(name, dim), self._embedded)

    # --- token-wise

    def add(self, a: Scaled[V], b: Scaled[V]) -> Scaled[V]:
        assert a.factor == b.factor, f"adding values scaled by {a.factor} and {b.factor}"
        return Scaled(self.inner.add(a.value, b.value), a.factor)

    def scale(self, x: Scaled[V], factor: float) -> Scaled[V]:
        return Scaled(self.inner.scale(x.value, factor), x.factor)

    def norm(self, x: Scaled[V], name: str, kind: NormKind, eps: float, dim: int) -> Scaled[V]:
        target = self._target(name)
        for part in ("weight", "bias"):
            self._multiply(f"{name}.{part}", target)
        return Scaled(self.inner.norm(x.value, name, kind, eps * x.factor**2, dim), target)

    def linear(self, x: Scaled[V], names: Sequence[str], outs: Sequence[int], dim: int) -> list[Scaled[V]]:
        targets = [self._target(name) for name in names]
        for name, target in zip(names, targets, strict=True):
            self._multiply(f"{name}.weight", target / x.factor)
            self._multiply(f"{name}.bias", target)
        values = self.inner.linear(x.value, names, outs, dim)
        return [Scaled(value, target) for value, target in zip(values, targets, strict=True)]

    def split(self, xs: Sequence[Scaled[V]], heads: Sequence[int], head_dim: int) -> list[Scaled[V]]:
        values = self.inner.split([x.value for x in xs], heads, head_dim)
        return [Scaled(value, x.factor) for value, x in zip(values, xs, strict=True)]

    def rope(self, x: Scaled[V], rope: Rope, head_dim: int) -> Scaled[V]:
        return Scaled(self.inner.rope(x.value, rope, head_dim), x.factor)

    def attention(self, q: Scaled[V], k: Scaled[V], v: Scaled[V], spec: Attention, site: str) -> Scaled[V]:
        folded = replace(spec, scale=spec.scale / (q.factor * k.factor))
        return Scaled(self.inner.attention(q.value, k.value, v.value, folded, site), v.factor)

    def activation(self, x: Scaled[V], act: Act, site: str | None = None) -> Scaled[V]:
        assert x.factor == 1.0 or act in ("relu", "identity"), f"{act} of a value scaled by {x.factor}"
        return Scaled(self.inner.activation(x.value, act, site), x.factor)

    def gate(self, gate: Scaled[V], up: Scaled[V], act: Act, site: str) -> Scaled[V]:
        assert gate.factor == 1.0, f"a gate scaled by {gate.factor}"
        return Scaled(self.inner.gate(gate.value, up.value, act, site), up.factor)

    def moe(self, x: Scaled[V], name: str, moe: Moe, act: Act, dim: int, ffn: int) -> Scaled[V]:
        target = self._target(name)
        for part in ("router", "w1"):
            self._multiply(f"{name}.{part}.weight", 1 / x.factor)
        self._multiply(f"{name}.w2.weight", target)
        self._multiply(f"{name}.bias", target)
        return Scaled(self.inner.moe(x.value, name, moe, act, dim, ffn), target)

    # --- head: the scale, if any is left, goes before anything else happens

    def _plain(self, x: Scaled[V]) -> V:
        value = self.inner.to_float(x.value)
        return value if x.factor == 1.0 else self.inner.scale(value, 1 / x.factor)

    def pool(self, x: Scaled[V], pooling: Pooling, include_prompt: bool) -> Scaled[V]:
        return Scaled(self.inner.pool(self._plain(x), pooling, include_prompt), 1.0)

    def concat(self, parts: Sequence[Scaled[V]]) -> Scaled[V]:
        return Scaled(self.inner.concat([part.value for part in parts]), 1.0)

    def to_float(self, x: Scaled[V]) -> Scaled[V]:
        return Scaled(self._plain(x), 1.0)

    def dense(self, x: Scaled[V], name: str, out: int, dim: int) -> Scaled[V]:
        return Scaled(self.inner.dense(x.value, name, out, dim), 1.0)

    def normalize(self, x: Scaled[V]) -> Scaled[V]:
        return Scaled(self.inner.normalize(x.value), 1.0)

    def tokens(self, x: Scaled[V]) -> Scaled[V]:
        return Scaled(self.inner.tokens(x.value), 1.0)
