"""jina-embeddings-v3 in transformers' own layout (jina-embeddings-v3-hf): XLM-RoBERTa's post-norm layers with rotary
positions. Task adapters (LoRA) lie in files of their own; merge the one wanted into the weights first."""

from dataclasses import replace

from bei.adapters.base import Adapter, HfConfig, Rows, thirds, view
from bei.adapters.bert import backbone, token_head
from bei.adapters.config import EncoderConfig, Layer
from bei.adapters.roberta import sequence_head
from bei.adapters.rope import read_rope


def config(hf: HfConfig) -> EncoderConfig:
    cfg = backbone(hf)
    rope = read_rope(hf, cfg.head_dim, default_theta=20_000.0)
    return replace(cfg, layers=(Layer(rope=rope),) * len(cfg.layers), types=hf.size("type_vocab_size"))


def weights(cfg: EncoderConfig) -> Rows:
    yield "embed.tokens.weight", view("embeddings.word_embeddings.weight")
    yield "embed.types.weight", view("embeddings.token_type_embeddings.weight")
    for p in ("weight", "bias"):
        yield f"embed.norm.{p}", view(f"emb_ln.{p}")
        for i in range(len(cfg.layers)):
            ours, hf = f"layers.{i}", f"encoder.layers.{i}"
            for x, rows in zip("qkv", thirds(cfg.dim), strict=True):
                yield f"{ours}.{x}.{p}", view(f"{hf}.mixer.Wqkv.{p}", rows=rows)
            yield f"{ours}.o.{p}", view(f"{hf}.mixer.out_proj.{p}")
            yield f"{ours}.attn_norm.{p}", view(f"{hf}.norm1.{p}")
            yield f"{ours}.up.{p}", view(f"{hf}.mlp.fc1.{p}")
            yield f"{ours}.down.{p}", view(f"{hf}.mlp.fc2.{p}")
            yield f"{ours}.ffn_norm.{p}", view(f"{hf}.norm2.{p}")


JINA_V3 = Adapter(
    name="jina-v3",
    model_types=("jina_embeddings_v3",),
    config=config,
    weights=weights,
    prefixes=("", "roberta."),
    ignore=("pooler.*", "lm_head.*"),
    sequence_head=sequence_head,
    token_head=token_head,
)
