"""MPNet: BERT's layers, plus one table of relative-position buckets that every layer adds to its scores.

Positions are counted from padding id 1 whatever config.json says, and the buckets are always 32 up to distance 128:
transformers' class hard-codes all three. There are no token types.
"""

from dataclasses import replace

from bei.adapters.base import Adapter, HfConfig, Rows, expect, view
from bei.adapters.bert import backbone, token_head
from bei.adapters.config import EncoderConfig, RelativeBuckets
from bei.adapters.roberta import sequence_head


def config(hf: HfConfig) -> EncoderConfig:
    expect(hf, relative_attention_num_buckets=32)
    return replace(
        backbone(hf),
        positions=hf.size("max_position_embeddings"),
        position_pad=1,
        bias=RelativeBuckets(buckets=32, max_distance=128),
    )


def weights(cfg: EncoderConfig) -> Rows:
    yield "embed.tokens.weight", view("embeddings.word_embeddings.weight")
    yield "embed.positions.weight", view("embeddings.position_embeddings.weight")
    yield "embed.buckets.weight", view("encoder.relative_attention_bias.weight")
    for p in ("weight", "bias"):
        yield f"embed.norm.{p}", view(f"embeddings.LayerNorm.{p}")
        for i in range(len(cfg.layers)):
            ours, hf = f"layers.{i}", f"encoder.layer.{i}"
            for x in ("q", "k", "v", "o"):
                yield f"{ours}.{x}.{p}", view(f"{hf}.attention.attn.{x}.{p}")
            yield f"{ours}.attn_norm.{p}", view(f"{hf}.attention.LayerNorm.{p}")
            yield f"{ours}.up.{p}", view(f"{hf}.intermediate.dense.{p}")
            yield f"{ours}.down.{p}", view(f"{hf}.output.dense.{p}")
            yield f"{ours}.ffn_norm.{p}", view(f"{hf}.output.LayerNorm.{p}")


MPNET = Adapter(
    name="mpnet",
    model_types=("mpnet",),
    config=config,
    weights=weights,
    prefixes=("", "mpnet."),
    ignore=("pooler.*", "lm_head.*", "embeddings.position_ids"),
    sequence_head=sequence_head,
    token_head=token_head,
)
