"""The interpreter that computes nothing: it lists the weights an encoder needs, with their shapes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from bei.adapters.config import Act, EncoderConfig, Moe, NormKind, RelativeBuckets, Rope
from bei.adapters.head import Head, Pooling
from bei.compiler.encoder import run
from bei.compiler.ops import Attention, Index

Shape = tuple[int, ...]


@dataclass(slots=True)
class Signature:
    """An `Ops` over nothing. ``needed`` must be provided; ``optional`` (biases) may be."""

    needed: dict[str, Shape] = field(default_factory=dict)
    optional: dict[str, Shape] = field(default_factory=dict)
    attentions: list[Attention] = field(default_factory=list)

    def embed(self, name: str, index: Index, rows: int, dim: int) -> None:
        self.needed[f"{name}.weight"] = (rows, dim)

    def row(self, name: str, dim: int) -> None:
        self.needed[f"{name}.weight"] = (1, dim)

    def add(self, a: None, b: None) -> None: ...

    def scale(self, x: None, factor: float) -> None: ...

    def norm(self, x: None, name: str, kind: NormKind, eps: float, dim: int) -> None:
        self.needed[f"{name}.weight"] = (dim,)
        if kind == "layer":
            self.optional[f"{name}.bias"] = (dim,)

    def linear(self, x: None, names: Sequence[str], outs: Sequence[int], dim: int) -> list[None]:
        for name, out in zip(names, outs, strict=True):
            self.dense(None, name, out, dim)
        return [None] * len(names)

    def split(self, xs: Sequence[None], heads: Sequence[int], head_dim: int) -> list[None]:
        return [None] * len(xs)

    def rope(self, x: None, rope: Rope, head_dim: int) -> None: ...

    def attention(self, q: None, k: None, v: None, spec: Attention, site: str) -> None:
        self.attentions.append(spec)
        if isinstance(spec.bias, RelativeBuckets):
            self.needed["embed.buckets.weight"] = (spec.bias.buckets, spec.heads)

    def activation(self, x: None, act: Act, site: str | None = None) -> None: ...

    def gate(self, gate: None, up: None, act: Act, site: str) -> None: ...

    def moe(self, x: None, name: str, moe: Moe, act: Act, dim: int, ffn: int) -> None:
        self.needed[f"{name}.router.weight"] = (moe.experts, dim)
        self.needed[f"{name}.w1.weight"] = (moe.experts * ffn, dim)
        self.needed[f"{name}.w2.weight"] = (moe.experts * ffn, dim)
        self.optional[f"{name}.bias"] = (dim,)

    def pool(self, x: None, pooling: Pooling, include_prompt: bool) -> None: ...

    def concat(self, parts: Sequence[None]) -> None: ...

    def to_float(self, x: None) -> None: ...

    def dense(self, x: None, name: str, out: int, dim: int) -> None:
        self.needed[f"{name}.weight"] = (out, dim)
        self.optional[f"{name}.bias"] = (out,)

    def normalize(self, x: None) -> None: ...

    def tokens(self, x: None) -> None: ...


def signature(cfg: EncoderConfig, head: Head) -> Signature:
    """What `run(cfg, head, …)` reads, and its attention layers in order."""
    ops = Signature()
    run(cfg, head, ops)
    return ops
