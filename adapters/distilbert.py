"""DistilBERT: BERT's layers under other names, without token types; eps is fixed at 1e-12.

Positions are read from the checkpoint whether they were learned or made (`sinusoidal_pos_embds`): both are stored.
"""

from bei.adapters.base import ACTIVATIONS, Adapter, HfConfig, Rows, TaskHead, head_rows, view
from bei.adapters.bert import labels, token_head
from bei.adapters.config import EncoderConfig, Layer
from bei.adapters.head import Dense


def config(hf: HfConfig) -> EncoderConfig:
    dim, heads = hf.size("dim"), hf.size("n_heads")
    return EncoderConfig(
        vocab=hf.size("vocab_size"),
        dim=dim,
        layers=(Layer(),) * hf.size("n_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=dim // heads,
        ffn=hf.size("hidden_dim"),
        act=hf.choice("activation", ACTIVATIONS),
        gated=False,
        norm="layer",
        norm_eps=1e-12,
        placement="post",
        attn_scale=(dim // heads) ** -0.5,
        positions=hf.size("max_position_embeddings"),
        embed_norm=True,
    )


def weights(cfg: EncoderConfig) -> Rows:
    yield "embed.tokens.weight", view("embeddings.word_embeddings.weight")
    yield "embed.positions.weight", view("embeddings.position_embeddings.weight")
    for p in ("weight", "bias"):
        yield f"embed.norm.{p}", view(f"embeddings.LayerNorm.{p}")
        for i in range(len(cfg.layers)):
            ours, hf = f"layers.{i}", f"transformer.layer.{i}"
            for x, theirs in (("q", "q_lin"), ("k", "k_lin"), ("v", "v_lin"), ("o", "out_lin")):
                yield f"{ours}.{x}.{p}", view(f"{hf}.attention.{theirs}.{p}")
            yield f"{ours}.attn_norm.{p}", view(f"{hf}.sa_layer_norm.{p}")
            yield f"{ours}.up.{p}", view(f"{hf}.ffn.lin1.{p}")
            yield f"{ours}.down.{p}", view(f"{hf}.ffn.lin2.{p}")
            yield f"{ours}.ffn_norm.{p}", view(f"{hf}.output_layer_norm.{p}")


def sequence_head(hf: HfConfig) -> TaskHead:
    """classifier(relu(pre_classifier(first token)))"""
    rows = head_rows(("pre_classifier", "pre_classifier"), ("classifier", "classifier"))
    steps = (
        Dense(name="head.pre_classifier", out=hf.size("dim"), act="relu"),
        Dense(name="head.classifier", out=labels(hf)),
    )
    return TaskHead(pooling=("cls",), steps=steps, weights=rows)


DISTILBERT = Adapter(
    name="distilbert",
    model_types=("distilbert",),
    config=config,
    weights=weights,
    prefixes=("", "distilbert."),
    ignore=("vocab_transform.*", "vocab_layer_norm.*", "vocab_projector.*", "embeddings.position_ids"),
    sequence_head=sequence_head,
    token_head=token_head,
)
