"""The operations an encoder is written in. Each interpreter (`compiler/lowering/`) gives them a meaning.

Values are token-wise: the leading axes are the layout's business ([B, L] padded or [T] packed), the last ones are
named here. D width, N heads, K key/value heads, H features a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from bei.adapters.config import Act, Moe, NormKind, RelativeBuckets, Rope
from bei.adapters.head import Pooling

V = TypeVar("V")
Index = Literal["tokens", "types", "positions"]

STREAM_NORMS = ("embed.norm", ".attn_norm", ".ffn_norm")
"""Norms whose outputs are a post-norm encoder's residual stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """What one attention layer computes: softmax(cap(scale·q·kᵀ) + bias) over the visible keys, times v.

    ``window`` and ``causal`` as in `bei.adapters.config`; ``bias`` relative buckets read ``embed.buckets.weight``.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    causal: bool
    window: int | None
    softcap: float | None
    bias: Literal["alibi"] | RelativeBuckets | None


class Ops(Protocol[V]):
    """Names are canonical weight names without ``.weight`` / ``.bias``; a bias is used where there is one."""

    def embed(self, name: str, index: Index, rows: int, dim: int) -> V:
        """[..., D]: rows of a table, by token id, token type or position."""

    def row(self, name: str, dim: int) -> V:
        """[D]: the only row of a one-row table."""

    def add(self, a: V, b: V) -> V:
        """a + b, in the residual stream's precision."""

    def scale(self, x: V, factor: float) -> V:
        """x · factor."""

    def norm(self, x: V, name: str, kind: NormKind, eps: float, dim: int) -> V:
        """Normalise the last axis (``dim`` wide): statistics and weight in fp32."""

    def linear(self, x: V, names: Sequence[str], outs: Sequence[int], dim: int) -> list[V]:
        """x · Wᵀ + b for several weights [out, dim] of one input; fp32 accumulation."""

    def split(self, xs: Sequence[V], heads: Sequence[int], head_dim: int) -> list[V]:
        """[..., N·H] → [..., N, H] for queries, keys and values, each with so many heads."""

    def rope(self, x: V, rope: Rope, head_dim: int) -> V:
        """Rotate [..., N, H] by each token's position."""

    def attention(self, q: V, k: V, v: V, spec: Attention, site: str) -> V:
        """[..., N, H], [..., K, H], [..., K, H] → [..., N·H]."""

    def activation(self, x: V, act: Act, site: str | None = None) -> V:
        """Element-wise; ``site`` names it in the encoder's body, the head's have none."""

    def gate(self, gate: V, up: V, act: Act, site: str) -> V:
        """act(gate) · up."""

    def moe(self, x: V, name: str, moe: Moe, act: Act, dim: int, ffn: int) -> V:
        """Mixture of two-layer MLPs: router [E, D], w1 and w2 [E·F, D], one shared bias."""

    def pool(self, x: V, pooling: Pooling, include_prompt: bool) -> V:
        """[..., D] → [B, D] in fp32."""

    def concat(self, parts: Sequence[V]) -> V:
        """Along the last axis."""

    def to_float(self, x: V) -> V:
        """In fp32: where the head begins."""

    def dense(self, x: V, name: str, out: int, dim: int) -> V:
        """A linear of the head, wholly in fp32."""

    def normalize(self, x: V) -> V:
        """x / max(‖x‖₂, 1e-12)."""

    def tokens(self, x: V) -> V:
        """Back to [B, L, D] for per-token results."""
