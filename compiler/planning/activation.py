"""How much memory a TensorRT plan needs for intermediates, from the encoder's configuration alone.

The largest of a layer's two halves decides: attention with its queries, keys and values (width Q, K, K), or the MLP with
its hidden value (width F), each beside the residual stream (width D). Which copies live at the same time is the
builder's secret, so the bytes a token per element of each width are fitted: to what TensorRT-RTX 1.7 reported for 240
random encoders and for the zoo's families. A post-norm's stream is FP16, and what is alive is then plain to see, as in a
gated MLP: the numbers are whole ones. What grows with the square of the length is known: one FP16 or BOOL mask that all layers share
(causal attention needs none).
"""

from dataclasses import dataclass

from bei.adapters.config import Act, EncoderConfig, RelativeBuckets


@dataclass(frozen=True, kw_only=True, slots=True)
class _Half:
    """Bytes a token for each element of the stream and of two more widths."""

    stream: float
    first: float
    second: float

    def per_token(self, dim: int, first: int, second: int) -> float:
        return self.stream * dim + self.first * first + self.second * second


_PLAIN = _Half(stream=7.4, first=4.3, second=8.0)
_GROUPED = _Half(stream=7.4, first=5.6, second=6.5)
_FULL_NORM = _Half(stream=7.4, first=7.1, second=11.1)
"""Attention by whether queries share keys (norms of heads change nothing), or its norm of the full width: of Q and K."""

_GATED = _Half(stream=6, first=6, second=2)
_FUSED = _Half(stream=8.6, first=1.9, second=3.7)
_UNFUSED = _Half(stream=8.6, first=2.8, second=3.9)
_EXPERTS = _Half(stream=8.6, first=4.0, second=0.0)
"""The MLP by its form (an activation may be part of the product before it): of F and Q, where it is gated Q + K."""

_POST_ATTENTION = _Half(stream=2, first=4, second=8)
_POST_FULL_NORM = _Half(stream=2, first=8, second=12)
_POST_GATED = _Half(stream=6, first=6, second=0)
_POST_FUSED = _Half(stream=8, first=2, second=0)
_POST_UNFUSED = (_Half(stream=12, first=2, second=0), _Half(stream=6, first=4, second=0))
_POST_NORMED = 6.0
"""The same where norms come last."""

_NORMED = (
    1.5  # bytes a token per element of Q that a norm of q and k over the full width leaves beside the MLP
)
_IN_PRODUCT: frozenset[Act] = frozenset({"gelu", "gelu_tanh", "relu", "identity"})
_MASK, _BIAS = 1.9, 2.1  # bytes per query and key: of a window's mask; per head, of a bias
_SCORES = 6.0  # the same for scores that go through memory
_TABLE = 20  # bytes per query and key, once a batch, of looking relative positions up
_SMALL, _NARROW, _WORKSPACE = 1 << 21, 1024, 8_200_000
"""Products of so few elements, in models so narrow, are split over their inner axis, and the parts need bytes."""


def activation_bytes(cfg: EncoderConfig, rows: int, length: int) -> int:
    """Bytes for ``rows`` full rows of ``length`` tokens, padded or packed (packing saves time, not this memory)."""
    tokens = rows * length
    split = tokens * cfg.dim <= _SMALL and cfg.dim <= _NARROW
    mlp = tokens * _mlp(cfg) + (_WORKSPACE if split else 0)
    pairs = length * length
    once = _TABLE * pairs if isinstance(cfg.bias, RelativeBuckets) else 0
    return round(max(tokens * _attention(cfg) + once, mlp) + rows * pairs * _per_pair(cfg))


def _attention(cfg: EncoderConfig) -> float:
    grouped, post = cfg.kv_heads < cfg.heads, cfg.placement == "post"
    if cfg.qk_norm == "full":
        half = _POST_FULL_NORM if post else _FULL_NORM
    else:
        half = _POST_ATTENTION if post else _GROUPED if grouped else _PLAIN
    return half.per_token(cfg.dim, cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim)


def _mlp(cfg: EncoderConfig) -> float:
    queries, keys, post = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim, cfg.placement == "post"
    normed = (_POST_NORMED if post else _NORMED) * queries if cfg.qk_norm == "full" else 0.0
    beside = queries + keys if cfg.gated else queries
    sizes = [form.per_token(cfg.dim, cfg.ffn, beside) + normed for form in _forms(cfg)]
    sizes += [
        _EXPERTS.per_token(cfg.dim, layer.moe.experts * cfg.ffn, 0) for layer in cfg.layers if layer.moe
    ]
    return max(sizes)


def _forms(cfg: EncoderConfig) -> tuple[_Half, ...]:
    """Of a plain or gated MLP: its moments, of which the largest counts."""
    post, fused = cfg.placement == "post", cfg.act in _IN_PRODUCT
    if cfg.gated:
        return (_POST_GATED if post else _GATED,)
    if fused:
        return (_POST_FUSED if post else _FUSED,)
    return _POST_UNFUSED if post else (_UNFUSED,)


def _per_pair(cfg: EncoderConfig) -> float:
    """Bytes for each query and key of a row."""
    windows = any(layer.window is not None for layer in cfg.layers)
    size = _MASK if windows and not cfg.causal else 0.0
    if cfg.bias is not None:
        size += _BIAS * cfg.heads
    return size + (_SCORES * cfg.heads if cfg.softcap is not None else 0.0)
