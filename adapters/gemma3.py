"""Gemma 3, text only (EmbeddingGemma): four norms a layer, all of weight 1 + w, q/k norm per head, two thetas.

Bidirectional where `use_bidirectional_attention` says so; `sliding_window` W then counts both sides, |i − j| <= W / 2.
Older transformers saved W / 2 + 1 in that case (257 for 512), to be halved again on the next load: odd is refused.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

from bei.adapters.base import ACTIVATIONS, Array, HfConfig, Rows, derive, expect, view
from bei.adapters.config import EncoderConfig, Layer
from bei.adapters.llama import LLAMA, key_value_heads, matrices
from bei.adapters.rope import layer_parameters, mapping, read_rope
from bei.adapters.visibility import FULL, SLIDING, flag, layer_types
from bei.errors import UnsupportedConfig

SIGNIFICANT_BITS = {"float32": 24, "bfloat16": 8, "float16": 11}
NORMS = {
    "attn_norm": "input_layernorm",
    "attn_out_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_out_norm": "post_feedforward_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}


def config(hf: HfConfig) -> EncoderConfig:
    expect(hf, attention_bias=False, attn_logit_softcapping=None, is_causal=None)
    dim, heads, eps = hf.size("hidden_size"), hf.size("num_attention_heads"), hf.number("rms_norm_eps")
    causal = not flag(hf, "use_bidirectional_attention")
    return EncoderConfig(
        vocab=hf.size("vocab_size"),
        dim=dim,
        layers=tuple(_layers(hf, causal)),
        heads=heads,
        kv_heads=key_value_heads(hf, heads),
        head_dim=hf.size("head_dim"),
        ffn=hf.size("intermediate_size"),
        act=hf.choice("hidden_activation", ACTIVATIONS),
        gated=True,
        norm="rms",
        norm_eps=eps,
        placement="sandwich",
        attn_scale=hf.size("query_pre_attn_scalar") ** -0.5,
        embed_scale=embed_scale(hf, dim),
        final_norm=True,
        causal=causal,
        qk_norm="head",
        qk_norm_eps=eps,
    )


def embed_scale(hf: HfConfig, dim: int) -> float:
    """√dim in the dtype of the weights, as the model was trained: 27.7128 for 768, but 27.75 in bfloat16."""
    key = "dtype" if hf.get("dtype") else "torch_dtype"
    bits = hf.choice(key, SIGNIFICANT_BITS, "float32")
    mantissa, exponent = math.frexp(math.sqrt(dim))
    return math.ldexp(round(math.ldexp(mantissa, bits)), exponent - bits)


def _layers(hf: HfConfig, causal: bool) -> Iterable[Layer]:
    every, scaling = hf.size("sliding_window_pattern", 6), mapping(hf, "rope_scaling")
    derived = [SLIDING if (i + 1) % every else FULL for i in range(hf.size("num_hidden_layers"))]
    ropes = {
        FULL: {"rope_theta": hf.number("rope_theta", 1e6), **layer_parameters(hf, FULL), **scaling},
        SLIDING: {"rope_theta": hf.number("rope_local_base_freq", 1e4), **layer_parameters(hf, SLIDING)},
    }
    for kind in layer_types(hf, derived):
        rope = read_rope(hf, hf.size("head_dim"), parameters=ropes[kind])
        yield Layer(window=_window(hf, causal) if kind == SLIDING else None, rope=rope)


def _window(hf: HfConfig, causal: bool) -> int:
    window = hf.size("sliding_window")
    if not causal and window % 2:
        raise UnsupportedConfig(
            f"gemma3: sliding_window={window} in a bidirectional model, which older transformers saved for "
            f"{2 * (window - 1)} and any halves again. Write into config.json {2 * (window - 1)} for the window that "
            f"was saved (or the original model's, 512), or {window - 1} for what transformers makes of this file."
        )
    return window - 1 if causal else window // 2


def weights(cfg: EncoderConfig) -> Rows:
    yield "embed.tokens.weight", view("embed_tokens.weight")
    yield "final_norm.weight", derive(one_plus, "norm.weight")
    for n in (f"layers.{i}" for i in range(len(cfg.layers))):
        yield from matrices(n)
        for ours, theirs in NORMS.items():
            yield f"{n}.{ours}.weight", derive(one_plus, f"{n}.{theirs}.weight")


def one_plus(weight: Array) -> Array:
    """Stored norms are centred on 0."""
    return 1 + weight


GEMMA3 = replace(LLAMA, name="gemma3", model_types=("gemma3_text",), config=config, weights=weights)
