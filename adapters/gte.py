"""GTE, `new` (Alibaba's own code) and `gte` (transformers): post-norm, rotary positions, GeGLU.

`rope_scaling {"type": "ntk", "factor": s}` is static, at every length (the code builds its table for the stretched
length at once): inv_freq_i = (theta·s)^(−2i/d) / s^(2/d), which is linear scaling by s^(2/d) of theta·s.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bei.adapters.base import Adapter, HfConfig, Rows, expect, halves, thirds, view
from bei.adapters.bert import backbone, sequence_head, token_head
from bei.adapters.config import EncoderConfig, Layer, Rope
from bei.adapters.rope import flat_parameters, read_rope

THETA = {"new": 10_000.0, "gte": 160_000.0}
"""Each configuration class's default."""


def config(hf: HfConfig) -> EncoderConfig:
    expect(hf, position_embedding_type="rope", layer_norm_type="layer_norm", pack_qkv=True)
    expect(hf, logn_attention_scale=False, logn_attention_clip1=False)
    cfg = backbone(hf)
    layers = (Layer(rope=_rope(hf, cfg.head_dim)),) * len(cfg.layers)
    types = hf.size("type_vocab_size") if hf["type_vocab_size"] else 0
    return replace(cfg, layers=layers, gated=True, types=types)


def _rope(hf: HfConfig, dim: int) -> Rope:
    found, default = flat_parameters(hf), THETA[hf.name]
    if found.get("type", found.get("rope_type")) != "ntk":
        return read_rope(hf, dim, default_theta=default)
    return read_rope(hf, dim, parameters=_as_linear(HfConfig({"model_type": hf.name, **found}), hf, dim))


def _as_linear(ntk: HfConfig, hf: HfConfig, dim: int) -> Mapping[str, Any]:
    expect(ntk, mixed_b=None)
    factor = ntk.number("factor")
    theta = ntk.number("rope_theta", hf.number("rope_theta", THETA[hf.name]))
    return {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / dim)}


def weights(cfg: EncoderConfig) -> Rows:
    yield "embed.tokens.weight", view("embeddings.word_embeddings.weight")
    if cfg.types:
        yield "embed.types.weight", view("embeddings.token_type_embeddings.weight")
    for i in range(len(cfg.layers)):
        for x, rows in zip(("up", "gate"), halves(cfg.ffn), strict=True):
            yield f"layers.{i}.{x}.weight", view(f"encoder.layer.{i}.mlp.up_gate_proj.weight", rows=rows)
    for p in ("weight", "bias"):
        yield f"embed.norm.{p}", view(f"embeddings.LayerNorm.{p}")
        for i in range(len(cfg.layers)):
            ours, hf = f"layers.{i}", f"encoder.layer.{i}"
            for x, rows in zip("qkv", thirds(cfg.dim), strict=True):
                yield f"{ours}.{x}.{p}", view(f"{hf}.attention.qkv_proj.{p}", rows=rows)
            yield f"{ours}.o.{p}", view(f"{hf}.attention.o_proj.{p}")
            yield f"{ours}.attn_norm.{p}", view(f"{hf}.attn_ln.{p}")
            yield f"{ours}.down.{p}", view(f"{hf}.mlp.down_proj.{p}")
            yield f"{ours}.ffn_norm.{p}", view(f"{hf}.mlp_ln.{p}")


CLASSES = (
    *("Model", "ForMaskedLM", "ForMultipleChoice"),
    *("ForQuestionAnswering", "ForSequenceClassification", "ForTokenClassification"),
)
CODE = {"New": "{}", "Gte": "{}_hf_alibaba_nlp_gte"}
"""Prefix of the classes → their modules: Alibaba's own, and Snowflake's copy."""

GTE = Adapter(
    name="gte",
    model_types=tuple(THETA),
    config=config,
    weights=weights,
    remote_code=(
        *(f"{module.format('configuration')}.{prefix}Config" for prefix, module in CODE.items()),
        *(
            f"{module.format('modeling')}.{prefix}{kind}"
            for prefix, module in CODE.items()
            for kind in CLASSES
        ),
    ),
    code_repositories=("Alibaba-NLP/new-impl", "Snowflake/snowflake-arctic-embed-m-v2.0"),
    prefixes=("", "new.", "gte."),
    ignore=("pooler.*", "lm_head.*", "classifier.*"),
    sequence_head=sequence_head,
    token_head=token_head,
)
