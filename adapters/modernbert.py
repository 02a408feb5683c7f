"""ModernBERT: pre-norm, rotary, local and global layers with a theta each, GeGLU; no biases anywhere.

The embedding norm already normalises the first layer's input, so that layer has no norm before its attention.
`local_attention` counts both sides: a local layer sees |i − j| <= local_attention // 2.
"""

from collections.abc import Iterable

from bei.adapters.base import (
    ACTIVATIONS,
    Adapter,
    HfConfig,
    Rows,
    Source,
    TaskHead,
    expect,
    halves,
    head_rows,
    thirds,
    view,
)
from bei.adapters.bert import labels
from bei.adapters.config import EncoderConfig, Layer
from bei.adapters.head import Dense, LayerNorm, Pooling, Step
from bei.adapters.rope import layer_parameters, read_rope
from bei.adapters.visibility import FULL, SLIDING, layer_types

THETAS = {FULL: ("global_rope_theta", 160_000.0), SLIDING: ("local_rope_theta", 10_000.0)}
POOLINGS: dict[str, Pooling] = {"cls": "cls", "mean": "mean"}


def config(hf: HfConfig) -> EncoderConfig:
    expect(hf, attention_bias=False, mlp_bias=False, norm_bias=False, rope_scaling=None)
    dim, heads = hf.size("hidden_size"), hf.size("num_attention_heads")
    return EncoderConfig(
        vocab=hf.size("vocab_size"),
        dim=dim,
        layers=tuple(_layers(hf, dim // heads)),
        heads=heads,
        kv_heads=heads,
        head_dim=dim // heads,
        ffn=hf.size("intermediate_size"),
        act=hf.choice("hidden_activation", ACTIVATIONS),
        gated=True,
        norm="layer",
        norm_eps=hf.number("norm_eps"),
        placement="pre",
        attn_scale=(dim // heads) ** -0.5,
        embed_norm=True,
        final_norm=True,
    )


def _layers(hf: HfConfig, head_dim: int) -> Iterable[Layer]:
    count, every = hf.size("num_hidden_layers"), hf.size("global_attn_every_n_layers", 3)
    window, derived = hf.size("local_attention") // 2, [SLIDING if i % every else FULL for i in range(count)]
    for i, kind in enumerate(layer_types(hf, derived)):
        key, theta = THETAS[kind]
        rope = read_rope(
            hf,
            head_dim,
            default_theta=hf.number(key) if key in hf else theta,
            parameters=layer_parameters(hf, kind),
        )
        yield Layer(window=window if kind == SLIDING else None, rope=rope, attn_norm=i > 0)


def weights(cfg: EncoderConfig) -> Rows:
    yield "embed.tokens.weight", view("embeddings.tok_embeddings.weight")
    yield "embed.norm.weight", view("embeddings.norm.weight")
    yield "final_norm.weight", view("final_norm.weight")
    for i, layer in enumerate(cfg.layers):
        n = f"layers.{i}"
        if layer.attn_norm:
            yield f"{n}.attn_norm.weight", view(f"{n}.attn_norm.weight")
        for x, rows in zip("qkv", thirds(cfg.dim), strict=True):
            yield f"{n}.{x}.weight", view(f"{n}.attn.Wqkv.weight", rows=rows)
        yield f"{n}.o.weight", view(f"{n}.attn.Wo.weight")
        yield f"{n}.ffn_norm.weight", view(f"{n}.mlp_norm.weight")
        for x, rows in zip(("gate", "up"), halves(cfg.ffn), strict=True):
            yield f"{n}.{x}.weight", view(f"{n}.mlp.Wi.weight", rows=rows)
        yield f"{n}.down.weight", view(f"{n}.mlp.Wo.weight")


def sequence_head(hf: HfConfig) -> TaskHead:
    """classifier(norm(act(dense(pooled)))); `classifier_pooling` says how it pools, first of all"""
    steps, rows = _head(hf)
    return TaskHead(pooling=(hf.choice("classifier_pooling", POOLINGS, "cls"),), steps=steps, weights=rows)


def token_head(hf: HfConfig) -> TaskHead:
    """The same steps on every token"""
    steps, rows = _head(hf)
    return TaskHead(pooling=(), steps=steps, weights=rows)


def _head(hf: HfConfig) -> tuple[tuple[Step, ...], tuple[tuple[str, Source], ...]]:
    """`classifier_bias` is about the inner linear; the last one always has a bias."""
    names = ["head.dense.weight", "head.norm.weight"]
    names += ["head.dense.bias"] if hf.get("classifier_bias", False) else []
    rows = (*((name, view(name)) for name in names), *head_rows(("classifier", "classifier")))
    steps = (
        Dense(
            name="head.dense",
            out=hf.size("hidden_size"),
            act=hf.choice("classifier_activation", ACTIVATIONS, "gelu"),
        ),
        LayerNorm(name="head.norm", eps=hf.number("norm_eps")),
        Dense(name="head.classifier", out=labels(hf)),
    )
    return steps, rows


MODERNBERT = Adapter(
    name="modernbert",
    model_types=("modernbert",),
    config=config,
    weights=weights,
    prefixes=("", "model."),
    ignore=("head.*", "decoder.*"),
    sequence_head=sequence_head,
    token_head=token_head,
)
