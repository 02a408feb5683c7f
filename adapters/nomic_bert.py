"""NomicBERT v1, v1.5, v2-moe: post-norm, rotary positions.

v1 and v1.5 have a gated MLP and no biases; v2 has biases and a plain MLP, every second one a mixture of experts.
config.json spells its facts in one of two ways, or both at once (`nomic_keys`).

Dynamic NTK (`rotary_scaling_factor`) is computed from each text's own length. Hugging Face, natively and in the model's
own code, takes the padded length of the batch and keeps the frequencies of a longer batch seen before: there a vector
depends on its neighbours and on what was embedded earlier. They agree for a text embedded alone by a fresh model.
"""

from dataclasses import replace

from bei.adapters.base import Adapter, HfConfig, Rows, expect, thirds, view
from bei.adapters.bert import backbone, sequence_head, token_head
from bei.adapters.config import EncoderConfig, Layer, Moe
from bei.adapters.nomic_keys import native
from bei.adapters.rope import read_rope

CLASSES = (
    *("Model", "ForPreTraining", "ForMultipleChoice"),
    *("ForQuestionAnswering", "ForSequenceClassification", "ForTokenClassification"),
)


def config(hf: HfConfig) -> EncoderConfig:
    hf = native(hf)
    gated = hf.get("activation_function") != "gelu"
    expect(hf, prenorm=False, parallel_block=False, causal=False, use_rms_norm=False, num_heads_kv=None)
    expect(hf, rotary_emb_fraction=1.0, rotary_emb_interleaved=False, rotary_emb_scale_base=None)
    expect(hf, qkv_proj_bias=not gated, mlp_fc1_bias=not gated, mlp_fc2_bias=not gated)
    cfg, multiple = backbone(hf), hf.size("pad_vocab_size_multiple", 1)
    expect(hf, head_dim=cfg.head_dim)
    return replace(
        cfg,
        vocab=-(-cfg.vocab // multiple) * multiple,
        layers=_layers(hf, cfg),
        gated=gated,
        types=hf.size("type_vocab_size") if hf["type_vocab_size"] else 0,
    )


def _layers(hf: HfConfig, cfg: EncoderConfig) -> tuple[Layer, ...]:
    """With experts, layers 1, 1 + n, 1 + 2n … are mixtures (n = `moe_every_n_layers`), the others plain."""
    plain, count = Layer(rope=read_rope(hf, cfg.head_dim, default_theta=1000.0)), len(cfg.layers)
    if not hf.get("num_experts") or hf.size("num_experts") == 1:
        return (plain,) * count
    expect(hf, activation_function="gelu", moe_normalize_expert_weights=False)
    expect(hf, expert_choice_router=False, num_shared_experts=0, ffn_div=1)
    moe = Moe(experts=hf.size("num_experts"), top_k=hf.size("moe_top_k"), renormalize=False)
    mixture = Layer(rope=plain.rope, moe=moe)
    return tuple(mixture if i % hf.size("moe_every_n_layers") == 1 else plain for i in range(count))


def weights(cfg: EncoderConfig) -> Rows:
    """Names as the Hub has them, otherwise as transformers has them in memory."""
    yield "embed.tokens.weight", view("embeddings.word_embeddings.weight")
    if cfg.types:
        yield "embed.types.weight", view("embeddings.token_type_embeddings.weight")
    for p in ("weight", "bias"):
        yield f"embed.norm.{p}", view(f"emb_ln.{p}", otherwise=view(f"embeddings.LayerNorm.{p}"))
    for i, layer in enumerate(cfg.layers):
        yield from _attention(cfg, i)
        yield from _mixture(i) if layer.moe else _mlp(cfg, i)
        for ours, hub, memory in (("attn", "norm1", "post_attention"), ("ffn", "norm2", "post_mlp")):
            for p in ("weight", "bias"):
                other = view(f"layers.{i}.{memory}_layernorm.{p}")
                yield f"layers.{i}.{ours}_norm.{p}", view(f"encoder.layers.{i}.{hub}.{p}", otherwise=other)


def _attention(cfg: EncoderConfig, i: int) -> Rows:
    hub, memory = f"encoder.layers.{i}.attn", f"layers.{i}.self_attn"
    for p in _parameters(cfg):
        for x, rows in zip("qkv", thirds(cfg.dim), strict=True):
            other = view(f"{memory}.{x}_proj.{p}")
            yield f"layers.{i}.{x}.{p}", view(f"{hub}.Wqkv.{p}", rows=rows, otherwise=other)
        yield f"layers.{i}.o.{p}", view(f"{hub}.out_proj.{p}", otherwise=view(f"{memory}.o_proj.{p}"))


def _mlp(cfg: EncoderConfig, i: int) -> Rows:
    gated = {"up": "fc11", "gate": "fc12", "down": "fc2"}
    for ours, hub in (gated if cfg.gated else {"up": "fc1", "down": "fc2"}).items():
        for p in _parameters(cfg):
            other = view(f"layers.{i}.mlp.{ours}_proj.{p}")
            yield f"layers.{i}.{ours}.{p}", view(f"encoder.layers.{i}.mlp.{hub}.{p}", otherwise=other)


def _mixture(i: int) -> Rows:
    ours, hub = f"layers.{i}.moe", f"encoder.layers.{i}.mlp"
    yield f"{ours}.router.weight", view(f"{hub}.router.layer.weight")
    yield f"{ours}.w1.weight", view(f"{hub}.experts.mlp.w1")
    yield f"{ours}.w2.weight", view(f"{hub}.experts.mlp.w2")
    yield f"{ours}.bias", view(f"{hub}.experts.bias")


def _parameters(cfg: EncoderConfig) -> tuple[str, ...]:
    """`config` has made sure that the gated MLP comes without biases and the plain one with them."""
    return ("weight",) if cfg.gated else ("weight", "bias")


NOMIC_BERT = Adapter(
    name="nomic-bert",
    model_types=("nomic_bert",),
    config=config,
    weights=weights,
    remote_code=(
        "configuration_hf_nomic_bert.NomicBertConfig",
        *(f"modeling_hf_nomic_bert.NomicBert{kind}" for kind in CLASSES),
    ),
    code_repositories=("nomic-ai/nomic-bert-2048",),
    prefixes=("", "nomic_bert.", "bert."),
    ignore=("pooler.*", "cls.*"),
    sequence_head=sequence_head,
    token_head=token_head,
)
