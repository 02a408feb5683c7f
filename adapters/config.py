"""What the canonical encoder can be: every architecture is a value of `EncoderConfig`.

D is the width of the residual stream, N heads, K key/value heads, H features a head, F the MLP width.
A field that no code reads is a bug (a test checks it); a difference that loading can absorb gets no field.
"""

from dataclasses import dataclass
from typing import Literal

NormKind = Literal["layer", "rms"]
Placement = Literal["post", "pre", "sandwich"]
Act = Literal["gelu", "gelu_tanh", "silu", "relu", "tanh", "sigmoid", "identity"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearScaling:
    """Positions divided by ``factor``: inv_freq / factor. Static NTK is this with a changed theta."""

    factor: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's frequency-dependent scaling (long wavelengths / factor, a smooth ramp between)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamicNtk:
    """theta grows with a text's own length n once n > trained_positions (S):
    theta' = theta · (factor·n/S − (factor−1))^(d/(d−2)). Per row, so batches do not change a row."""

    factor: float
    trained_positions: int


RopeScaling = LinearScaling | Llama3Scaling | DynamicNtk


@dataclass(frozen=True, kw_only=True, slots=True)
class Rope:
    """Rotary positions over the first ``dim`` features of each head.

    Half-split pairs (i, i + dim/2), or neighbours (2i, 2i + 1) when ``interleaved``.
    """

    theta: float
    dim: int
    interleaved: bool = False
    scaling: RopeScaling | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RelativeBuckets:
    """T5 / MPNet relative position buckets: a learned [buckets, N] table, bidirectional, shared by all layers."""

    buckets: int
    max_distance: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Moe:
    """Softmax over ``experts`` in fp32, the best ``top_k``, weights renormalised or not."""

    experts: int
    top_k: int
    renormalize: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """What differs between the layers of one encoder.

    ``window``: keys visible on each side, |i − j| <= window (causal: 0 <= i − j <= window); None sees all.
    ``attn_norm`` is False where the layer's input is already normalised (ModernBERT's first layer).
    """

    window: int | None = None
    rope: Rope | None = None
    attn_norm: bool = True
    moe: Moe | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """Every fact the canonical encoder needs, and nothing it does not.

    ``positions``: rows of a learned position table (0: none). A token's row is its index, or with ``position_pad``
    (RoBERTa's pad id p) p plus its count among the tokens that are not p; p itself has row p. ``types``: rows of the token-type table
    (0: none, 1: one row added to every token). ``placement``: post = norm(x + f(x)), pre = x + f(norm(x)),
    sandwich = x + norm(f(norm(x))). ``attn_scale`` multiplies q·k. ``qk_norm``: per head, or over the full
    width before the head split. ``bias``: None, ALiBi, or relative buckets. ``double_residual`` is jina-code's:
    after attention, x = norm(x + (norm(x + attention(x)))).
    """

    vocab: int
    dim: int
    layers: tuple[Layer, ...]
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    act: Act
    gated: bool
    norm: NormKind
    norm_eps: float
    placement: Placement
    attn_scale: float
    positions: int = 0
    position_pad: int | None = None
    types: int = 0
    embed_scale: float = 1.0
    embed_norm: bool = False
    final_norm: bool = False
    causal: bool = False
    softcap: float | None = None
    qk_norm: Literal["head", "full"] | None = None
    qk_norm_eps: float = 0.0
    bias: Literal["alibi"] | RelativeBuckets | None = None
    double_residual: bool = False
