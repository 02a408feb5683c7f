"""BERT: post-norm, learned positions, separate q/k/v, every linear with a bias."""

from bei.adapters.base import ACTIVATIONS, Adapter, HfConfig, Rows, TaskHead, expect, view
from bei.adapters.config import EncoderConfig, Layer
from bei.adapters.head import Dense


def config(hf: HfConfig) -> EncoderConfig:
    expect(hf, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
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
        positions=hf.size("max_position_embeddings"),
        types=hf.size("type_vocab_size"),
        embed_norm=True,
    )


def weights(cfg: EncoderConfig) -> Rows:
    yield "embed.tokens.weight", view("embeddings.word_embeddings.weight")
    yield "embed.positions.weight", view("embeddings.position_embeddings.weight")
    yield "embed.types.weight", view("embeddings.token_type_embeddings.weight")
    for p in ("weight", "bias"):
        yield f"embed.norm.{p}", view(f"embeddings.LayerNorm.{p}")
        for i in range(len(cfg.layers)):
            ours, hf = f"layers.{i}", f"encoder.layer.{i}"
            yield f"{ours}.q.{p}", view(f"{hf}.attention.self.query.{p}")
            yield f"{ours}.k.{p}", view(f"{hf}.attention.self.key.{p}")
            yield f"{ours}.v.{p}", view(f"{hf}.attention.self.value.{p}")
            yield f"{ours}.o.{p}", view(f"{hf}.attention.output.dense.{p}")
            yield f"{ours}.attn_norm.{p}", view(f"{hf}.attention.output.LayerNorm.{p}")
            yield f"{ours}.up.{p}", view(f"{hf}.intermediate.dense.{p}")
            yield f"{ours}.down.{p}", view(f"{hf}.output.dense.{p}")
            yield f"{ours}.ffn_norm.{p}", view(f"{hf}.output.LayerNorm.{p}")


def labels(hf: HfConfig) -> int:
    """The number of classes: id2label's length, as transformers counts it; 2 where neither key is there."""
    stored = hf.get("id2label")
    return hf.size("num_labels", 2) if stored is None else len(stored)


def sequence_head(hf: HfConfig) -> TaskHead:
    """classifier(tanh(pooler.dense(first token)))"""
    rows = tuple(
        (f"head.{ours}.{p}", view(f"{theirs}.{p}"))
        for p in ("weight", "bias")
        for ours, theirs in (("pooler", "pooler.dense"), ("classifier", "classifier"))
    )
    steps = (
        Dense(name="head.pooler", out=hf.size("hidden_size"), act="tanh"),
        Dense(name="head.classifier", out=labels(hf)),
    )
    return TaskHead(pooling=("cls",), steps=steps, weights=rows)


def token_head(hf: HfConfig) -> TaskHead:
    """classifier(token), no pooler"""
    rows = tuple((f"head.classifier.{p}", view(f"classifier.{p}")) for p in ("weight", "bias"))
    return TaskHead(pooling=(), steps=(Dense(name="head.classifier", out=labels(hf)),), weights=rows)


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
