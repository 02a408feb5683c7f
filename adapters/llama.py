"""Llama: pre-norm, RMSNorm, rotary positions, grouped keys and values, gated MLP, no biases. Causal unless it says so.

The design that Qwen, Mistral, EuroBERT and NVIDIA's bidirectional Llama share: they start from `backbone`.
"""

from collections.abc import Sequence

from bei.adapters.base import ACTIVATIONS, Adapter, HfConfig, Rows, TaskHead, expect, head_rows, view
from bei.adapters.bert import labels
from bei.adapters.config import EncoderConfig, Layer
from bei.adapters.head import Dense
from bei.adapters.rope import read_rope
from bei.adapters.visibility import is_causal
from bei.errors import UnsupportedConfig


def backbone(hf: HfConfig, *, causal: bool, windows: Sequence[int | None] = ()) -> EncoderConfig:
    """The common reading; ``windows`` one a layer, none for full attention everywhere."""
    dim, heads = hf.size("hidden_size"), hf.size("num_attention_heads")
    head_dim = hf.size("head_dim", dim // heads)
    rope = read_rope(hf, head_dim, default_theta=10_000.0)
    windows = windows or (None,) * hf.size("num_hidden_layers")
    return EncoderConfig(
        vocab=hf.size("vocab_size"),
        dim=dim,
        layers=tuple(Layer(window=window, rope=rope) for window in windows),
        heads=heads,
        kv_heads=key_value_heads(hf, heads),
        head_dim=head_dim,
        ffn=hf.size("intermediate_size"),
        act=hf.choice("hidden_act", ACTIVATIONS),
        gated=True,
        norm="rms",
        norm_eps=hf.number("rms_norm_eps"),
        placement="pre",
        attn_scale=head_dim**-0.5,
        final_norm=True,
        causal=causal,
    )


def key_value_heads(hf: HfConfig, heads: int) -> int:
    """As many as ``heads`` where config.json does not say; raises UnsupportedConfig if they are not shared evenly."""
    kv_heads = hf.size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise UnsupportedConfig(
            f"{hf.name}: {heads} attention heads cannot share {kv_heads} key/value heads evenly"
        )
    return kv_heads


def config(hf: HfConfig) -> EncoderConfig:
    expect(hf, attention_bias=False, mlp_bias=False)
    return backbone(hf, causal=is_causal(hf, "Llama"))


def weights(cfg: EncoderConfig) -> Rows:
    yield "embed.tokens.weight", view("embed_tokens.weight")
    yield "final_norm.weight", view("norm.weight")
    for n in (f"layers.{i}" for i in range(len(cfg.layers))):
        yield from matrices(n)
        yield f"{n}.attn_norm.weight", view(f"{n}.input_layernorm.weight")
        yield f"{n}.ffn_norm.weight", view(f"{n}.post_attention_layernorm.weight")


def matrices(n: str) -> Rows:
    """The linears of layer ``n``."""
    for x in ("q", "k", "v", "o"):
        yield f"{n}.{x}.weight", view(f"{n}.self_attn.{x}_proj.weight")
    for x in ("gate", "up", "down"):
        yield f"{n}.{x}.weight", view(f"{n}.mlp.{x}_proj.weight")


def sequence_head(hf: HfConfig) -> TaskHead:
    """score(last token), no bias.

    transformers takes the last token whose id is not pad_token_id, so it differs for texts that end in that very id.
    """
    steps = (Dense(name="head.score", out=labels(hf)),)
    return TaskHead(pooling=("last",), steps=steps, weights=(("head.score.weight", view("score.weight")),))


def token_head(hf: HfConfig) -> TaskHead:
    """score(token), with a bias"""
    steps = (Dense(name="head.score", out=labels(hf)),)
    return TaskHead(pooling=(), steps=steps, weights=head_rows(("score", "score")))


LLAMA = Adapter(
    name="llama",
    model_types=("llama",),
    config=config,
    weights=weights,
    prefixes=("", "model."),
    ignore=("lm_head.*", "layers.*.self_attn.rotary_emb.inv_freq"),
    sequence_head=sequence_head,
    token_head=token_head,
)
