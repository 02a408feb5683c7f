"""BERT: post-norm, learned positions, separate q/k/v, every linear with a bias.

GTE, Jina v3, MPNet and NomicBERT share its design up to positions and MLP: they start from `backbone`.
"""

from dataclasses import replace

from bei.adapters.base import ACTIVATIONS, Adapter, HfConfig, Rows, TaskHead, View, expect, head_rows, view
from bei.adapters.config import EncoderConfig, Layer
from bei.adapters.head import Dense

OLD_NAMES = {"weight": "gamma", "bias": "beta"}


def backbone(hf: HfConfig) -> EncoderConfig:
    """The common reading of post-norm encoders, before what says how they tell positions."""
    dim, heads = hf.size("hidden_size"), hf.size("num_attention_heads")
    return EncoderConfig(
        vocab=hf.size("vocab_size"),
        dim=dim,
        layers=(Layer(),) * hf.size("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=dim // heads,
        ffn=hf.size("intermediate_size"),
        act=hf.choice("hidden_act", ACTIVATIONS),
        gated=False,
        norm="layer",
        norm_eps=hf.number("layer_norm_eps"),
        placement="post",
        attn_scale=(dim // heads) ** -0.5,
        embed_norm=True,
    )


def config(hf: HfConfig) -> EncoderConfig:
    expect(hf, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    positions, types = hf.size("max_position_embeddings"), hf.size("type_vocab_size")
    return replace(backbone(hf), positions=positions, types=types)


def weights(cfg: EncoderConfig) -> Rows:
    yield "embed.tokens.weight", view("embeddings.word_embeddings.weight")
    yield "embed.positions.weight", view("embeddings.position_embeddings.weight")
    yield "embed.types.weight", view("embeddings.token_type_embeddings.weight")
    for p in ("weight", "bias"):
        yield f"embed.norm.{p}", norm("embeddings.LayerNorm", p)
        for i in range(len(cfg.layers)):
            ours, hf = f"layers.{i}", f"encoder.layer.{i}"
            yield f"{ours}.q.{p}", view(f"{hf}.attention.self.query.{p}")
            yield f"{ours}.k.{p}", view(f"{hf}.attention.self.key.{p}")
            yield f"{ours}.v.{p}", view(f"{hf}.attention.self.value.{p}")
            yield f"{ours}.o.{p}", view(f"{hf}.attention.output.dense.{p}")
            yield f"{ours}.attn_norm.{p}", norm(f"{hf}.attention.output.LayerNorm", p)
            yield f"{ours}.up.{p}", view(f"{hf}.intermediate.dense.{p}")
            yield f"{ours}.down.{p}", view(f"{hf}.output.dense.{p}")
            yield f"{ours}.ffn_norm.{p}", norm(f"{hf}.output.LayerNorm", p)


def norm(name: str, p: str) -> View:
    """A norm's weight or bias, which the oldest files (bert-base-uncased) call gamma and beta."""
    return view(f"{name}.{p}", otherwise=view(f"{name}.{OLD_NAMES[p]}"))


def labels(hf: HfConfig) -> int:
    """The number of classes: id2label's length, as transformers counts it; 2 where neither key is there."""
    stored = hf.get("id2label")
    return hf.size("num_labels", 2) if stored is None else len(stored)


def sequence_head(hf: HfConfig) -> TaskHead:
    """classifier(tanh(pooler.dense(first token)))"""
    rows = head_rows(("pooler", "pooler.dense"), ("classifier", "classifier"))
    steps = (
        Dense(name="head.pooler", out=hf.size("hidden_size"), act="tanh"),
        Dense(name="head.classifier", out=labels(hf)),
    )
    return TaskHead(pooling=("cls",), steps=steps, weights=rows)


def token_head(hf: HfConfig) -> TaskHead:
    """classifier(token), no pooler"""
    steps = (Dense(name="head.classifier", out=labels(hf)),)
    return TaskHead(pooling=(), steps=steps, weights=head_rows(("classifier", "classifier")))


BERT = Adapter(
    name="bert",
    model_types=("bert",),
    config=config,
    weights=weights,
    prefixes=("", "bert."),
    ignore=("pooler.*", "cls.*", "embeddings.position_ids"),
    sequence_head=sequence_head,
    token_head=token_head,
)
