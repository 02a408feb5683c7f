"""The encoder, for every architecture, and the head: plain functions over `Ops`.

Nothing here knows a model's name, a target or a layout. What families differ in is `EncoderConfig`.
"""

from bei.adapters.config import EncoderConfig, Layer
from bei.adapters.head import Activate, Dense, Head, LayerNorm, Normalize, Scale, Step
from bei.compiler.ops import Attention, Ops, V


def run(cfg: EncoderConfig, head: Head, ops: Ops[V]) -> V:
    """Ids to the head's output: [B, d] vectors, [B, classes] or [B, L, classes] logits, in fp32."""
    return apply_head(cfg, head, ops, encode(cfg, ops))


def encode(cfg: EncoderConfig, ops: Ops[V]) -> V:
    """Ids to the last hidden state [..., D]."""
    x = embed(cfg, ops)
    for i, layer in enumerate(cfg.layers):
        x = block(cfg, layer, ops, f"layers.{i}", x)
    return norm(cfg, ops, x, "final_norm") if cfg.final_norm else x


def embed(cfg: EncoderConfig, ops: Ops[V]) -> V:
    """Token, type and position tables, summed; scaled; normalised."""
    x = ops.embed("embed.tokens", "tokens", cfg.vocab, cfg.dim)
    if cfg.embed_scale != 1.0:
        x = ops.scale(x, cfg.embed_scale)
    if cfg.types == 1:
        x = ops.add(x, ops.row("embed.types", cfg.dim))
    elif cfg.types > 1:
        x = ops.add(x, ops.embed("embed.types", "types", cfg.types, cfg.dim))
    if cfg.positions:
        x = ops.add(x, ops.embed("embed.positions", "positions", cfg.positions, cfg.dim))
    return norm(cfg, ops, x, "embed.norm") if cfg.embed_norm else x


def block(cfg: EncoderConfig, layer: Layer, ops: Ops[V], n: str, x: V) -> V:
    """One layer. post: norm(x + f(x)); pre: x + f(norm(x)); sandwich: x + norm(f(norm(x)))."""
    post, sandwich = cfg.placement == "post", cfg.placement == "sandwich"

    h = x if post or not layer.attn_norm else norm(cfg, ops, x, f"{n}.attn_norm")
    a = attention(cfg, layer, ops, n, h)
    if sandwich:
        a = norm(cfg, ops, a, f"{n}.attn_out_norm")
    if cfg.double_residual:
        a = norm(cfg, ops, ops.add(x, a), f"{n}.attn_inner_norm")
    x = ops.add(x, a)
    if post:
        x = norm(cfg, ops, x, f"{n}.attn_norm")

    h = x if post else norm(cfg, ops, x, f"{n}.ffn_norm")
    m = mlp(cfg, layer, ops, n, h)
    if sandwich:
        m = norm(cfg, ops, m, f"{n}.ffn_out_norm")
    x = ops.add(x, m)
    return norm(cfg, ops, x, f"{n}.ffn_norm") if post else x


def attention(cfg: EncoderConfig, layer: Layer, ops: Ops[V], n: str, x: V) -> V:
    """Projections, q/k norm, rotary positions, attention, output projection."""
    names = (f"{n}.q", f"{n}.k", f"{n}.v")
    wide, narrow = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    q, k, v = ops.linear(x, names, (wide, narrow, narrow), cfg.dim)
    if cfg.qk_norm == "full":
        q = ops.norm(q, f"{n}.q_norm", cfg.norm, cfg.qk_norm_eps, wide)
        k = ops.norm(k, f"{n}.k_norm", cfg.norm, cfg.qk_norm_eps, narrow)
    q, k, v = ops.split((q, k, v), (cfg.heads, cfg.kv_heads, cfg.kv_heads), cfg.head_dim)
    if cfg.qk_norm == "head":
        q = ops.norm(q, f"{n}.q_norm", cfg.norm, cfg.qk_norm_eps, cfg.head_dim)
        k = ops.norm(k, f"{n}.k_norm", cfg.norm, cfg.qk_norm_eps, cfg.head_dim)
    if layer.rope is not None:
        q, k = ops.rope(q, layer.rope, cfg.head_dim), ops.rope(k, layer.rope, cfg.head_dim)
    spec = Attention(
        heads=cfg.heads,
        kv_heads=cfg.kv_heads,
        head_dim=cfg.head_dim,
        scale=cfg.attn_scale,
        causal=cfg.causal,
        window=layer.window,
        softcap=cfg.softcap,
        bias=cfg.bias,
    )
    (out,) = ops.linear(ops.attention(q, k, v, spec, f"{n}.attention"), (f"{n}.o",), (cfg.dim,), wide)
    return out


def mlp(cfg: EncoderConfig, layer: Layer, ops: Ops[V], n: str, x: V) -> V:
    """Mixture of experts, gated, or plain."""
    if layer.moe is not None:
        return ops.moe(x, f"{n}.moe", layer.moe, cfg.act, cfg.dim, cfg.ffn)
    if cfg.gated:
        gate, up = ops.linear(x, (f"{n}.gate", f"{n}.up"), (cfg.ffn, cfg.ffn), cfg.dim)
        h = ops.gate(gate, up, cfg.act, f"{n}.hidden")
    else:
        (up,) = ops.linear(x, (f"{n}.up",), (cfg.ffn,), cfg.dim)
        h = ops.activation(up, cfg.act, f"{n}.hidden")
    (out,) = ops.linear(h, (f"{n}.down",), (cfg.dim,), cfg.ffn)
    return out


def norm(cfg: EncoderConfig, ops: Ops[V], x: V, name: str) -> V:
    """A norm of the residual stream's width."""
    return ops.norm(x, name, cfg.norm, cfg.norm_eps, cfg.dim)


def apply_head(cfg: EncoderConfig, head: Head, ops: Ops[V], x: V) -> V:
    """Pool (several poolings are concatenated), then the steps, in fp32."""
    width = cfg.dim
    if head.pooling:
        pooled = [ops.pool(x, pooling, head.include_prompt) for pooling in head.pooling]
        x = pooled[0] if len(pooled) == 1 else ops.concat(pooled)
        width *= len(pooled)
    else:
        x = ops.to_float(x)
    for step in head.steps:
        x, width = _step(ops, x, step, width)
    return x if head.pooling else ops.tokens(x)


def _step(ops: Ops[V], x: V, step: Step, width: int) -> tuple[V, int]:
    match step:
        case Dense():
            y = ops.dense(x, step.name, step.out, width)
            y = y if step.act == "identity" else ops.activation(y, step.act)
            if not step.residual:
                return y, step.out
            own = x if step.out == width else ops.dense(x, f"{step.name}.residual", step.out, width)
            return ops.add(own, y), step.out
        case LayerNorm():
            return ops.norm(x, step.name, "layer", step.eps, width), width
        case Activate():
            return ops.activation(x, step.act), width
        case Scale():
            return ops.scale(x, step.factor), width
        case Normalize():
            return ops.normalize(x), width


def output_width(cfg: EncoderConfig, head: Head) -> int:
    """Size of the output's last axis."""
    width = cfg.dim * max(1, len(head.pooling))
    for step in head.steps:
        if isinstance(step, Dense):
            width = step.out
    return width
