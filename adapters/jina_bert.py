"""JinaBERT v2 (small-en, base-en, base-de, base-es, base-zh): BERT with symmetric ALiBi instead of positions, and a
gated MLP.

`model_type` says bert; the code that `auto_map` (or, for a copy that carries the code along, `_name_or_path`) names
says which of two architectures it is. The feed-forward's activation is erf GELU or ReLU by `feed_forward_type`,
whatever `hidden_act` says.
"""

from dataclasses import replace

from bei.adapters.base import Adapter, HfConfig, Rows, expect, halves, view
from bei.adapters.bert import BERT
from bei.adapters.bert import config as bert_config
from bei.adapters.config import Act, EncoderConfig
from bei.adapters.remote_code import remote_classes

ACTS: dict[str, Act] = {"geglu": "gelu", "reglu": "relu"}
CLASSES = (
    *("Model", "ForMaskedLM", "ForSequenceClassification"),
    *("ForTokenClassification", "ForQuestionAnswering"),
)
REPOSITORY = "jinaai/jina-bert-implementation"


def implemented_by(hf: HfConfig, repository: str) -> bool:
    """Whether the checkpoint's code is that of ``repository``: both variants use the same names."""
    elsewhere = {found.repository for found in remote_classes(hf)} - {None}
    return bool(hf.get("auto_map")) and (elsewhere or {hf.get("_name_or_path")}) == {repository}


def config(hf: HfConfig) -> EncoderConfig:
    expect(hf, position_embedding_type="alibi")
    plain = bert_config(HfConfig({**hf, "position_embedding_type": "absolute"}))
    return replace(plain, positions=0, bias="alibi", act=hf.choice("feed_forward_type", ACTS), gated=True)


def attention_weights(cfg: EncoderConfig) -> Rows:
    """What both variants share: embeddings and the projections of attention."""
    yield "embed.tokens.weight", view("embeddings.word_embeddings.weight")
    yield "embed.types.weight", view("embeddings.token_type_embeddings.weight")
    for p in ("weight", "bias"):
        yield f"embed.norm.{p}", view(f"embeddings.LayerNorm.{p}")
        for i in range(len(cfg.layers)):
            ours, hf = f"layers.{i}", f"encoder.layer.{i}.attention"
            for x, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
                yield f"{ours}.{x}.{p}", view(f"{hf}.self.{theirs}.{p}")
            yield f"{ours}.o.{p}", view(f"{hf}.output.dense.{p}")


def weights(cfg: EncoderConfig) -> Rows:
    yield from attention_weights(cfg)
    for i in range(len(cfg.layers)):
        ours, hf = f"layers.{i}", f"encoder.layer.{i}"
        for x, rows in zip(("gate", "up"), halves(cfg.ffn), strict=True):
            yield f"{ours}.{x}.weight", view(f"{hf}.mlp.gated_layers.weight", rows=rows)
        for p in ("weight", "bias"):
            yield f"{ours}.attn_norm.{p}", view(f"{hf}.attention.output.LayerNorm.{p}")
            yield f"{ours}.down.{p}", view(f"{hf}.mlp.wo.{p}")
            yield f"{ours}.ffn_norm.{p}", view(f"{hf}.mlp.layernorm.{p}")


JINA_BERT: Adapter = replace(
    BERT,
    name="jina-bert",
    config=config,
    weights=weights,
    claims=lambda hf: implemented_by(hf, REPOSITORY),
    remote_code=(
        "configuration_bert.JinaBertConfig",
        *(f"modeling_bert.JinaBert{kind}" for kind in CLASSES),
    ),
    code_repositories=(REPOSITORY,),
)
