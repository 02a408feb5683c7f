"""JinaBERT v2 of base-code (`jina-bert-v2-qk-post-norm`): q and k normalised over all heads at once, a second residual
around attention, and the gated MLP with its halves the other way round."""

from dataclasses import replace

from bei.adapters.base import Adapter, HfConfig, Rows, halves, view
from bei.adapters.config import EncoderConfig
from bei.adapters.jina_bert import JINA_BERT, attention_weights, implemented_by
from bei.adapters.jina_bert import config as jina_config

REPOSITORY = "jinaai/jina-bert-v2-qk-post-norm"


def config(hf: HfConfig) -> EncoderConfig:
    plain = jina_config(hf)
    return replace(plain, qk_norm="full", qk_norm_eps=plain.norm_eps, double_residual=True)


def weights(cfg: EncoderConfig) -> Rows:
    yield from attention_weights(cfg)
    for i in range(len(cfg.layers)):
        ours, hf = f"layers.{i}", f"encoder.layer.{i}"
        for x, rows in zip(("up", "gate"), halves(cfg.ffn), strict=True):
            yield f"{ours}.{x}.weight", view(f"{hf}.mlp.up_gated_layer.weight", rows=rows)
        for p in ("weight", "bias"):
            for x in "qk":
                yield f"{ours}.{x}_norm.{p}", view(f"{hf}.attention.self.layer_norm_{x}.{p}")
            yield f"{ours}.attn_inner_norm.{p}", view(f"{hf}.attention.output.LayerNorm.{p}")
            yield f"{ours}.attn_norm.{p}", view(f"{hf}.layer_norm_1.{p}")
            yield f"{ours}.down.{p}", view(f"{hf}.mlp.down_layer.{p}")
            yield f"{ours}.ffn_norm.{p}", view(f"{hf}.layer_norm_2.{p}")


JINA_BERT_CODE: Adapter = replace(
    JINA_BERT,
    name="jina-bert-code",
    config=config,
    weights=weights,
    claims=lambda hf: implemented_by(hf, REPOSITORY),
    code_repositories=(REPOSITORY,),
)
