"""One row per architecture: the tiny model that proves its adapter. Switch on what the family can do."""

from typing import Any

from transformers import (
    BertConfig,
    BertModel,
    CamembertConfig,
    CamembertModel,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from bei.adapters.bert import BERT
from bei.adapters.distilbert import DISTILBERT
from bei.adapters.modernbert import MODERNBERT
from bei.adapters.mpnet import MPNET
from bei.adapters.roberta import ROBERTA
from tests.adapters.tiny import Case

TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}

EPS = 0.02
"""Large enough that a model with another one gives visibly other values."""


def modernbert() -> ModernBertConfig:
    """A local layer among global ones, window 4 on each side, special tokens inside the vocabulary."""
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 2)
    return ModernBertConfig(
        **TINY | {"num_hidden_layers": 4},
        **special,
        pad_token_id=0,
        norm_eps=EPS,
        local_attention=8,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 40.0},
        },
    )


def modernbert_legacy(config: dict[str, Any]) -> dict[str, Any]:
    """As the Hub's checkpoints spell it."""
    rope = config.pop("rope_parameters")
    config.pop("layer_types")
    return config | {
        "global_attn_every_n_layers": 3,
        "global_rope_theta": rope["full_attention"]["rope_theta"],
        "local_rope_theta": rope["sliding_attention"]["rope_theta"],
        "position_embedding_type": "absolute",
        "layer_norm_eps": 1e-5,
    }


CASES = (
    Case(adapter=BERT, name="bert", model=lambda: BertModel(BertConfig(**TINY))),
    Case(
        adapter=ROBERTA,
        name="roberta",
        model=lambda: RobertaModel(RobertaConfig(**TINY, pad_token_id=1, type_vocab_size=1)),
    ),
    Case(
        adapter=ROBERTA,
        name="xlm-roberta",
        model=lambda: XLMRobertaModel(XLMRobertaConfig(**TINY, pad_token_id=1, type_vocab_size=1)),
    ),
    Case(
        adapter=ROBERTA,
        name="camembert",
        model=lambda: CamembertModel(CamembertConfig(**TINY, pad_token_id=3, type_vocab_size=2)),
    ),
    Case(
        adapter=DISTILBERT,
        name="distilbert",
        model=lambda: DistilBertModel(
            DistilBertConfig(
                vocab_size=97, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40
            )
        ),
    ),
    Case(
        adapter=MPNET,
        name="mpnet",
        model=lambda: MPNetModel(MPNetConfig(**TINY | {"max_position_embeddings": 152}, layer_norm_eps=EPS)),
        lengths=(1, 33, 150),
    ),
    Case(adapter=MODERNBERT, name="modernbert", model=lambda: ModernBertModel(modernbert())),
    Case(
        adapter=MODERNBERT,
        name="modernbert-legacy",
        model=lambda: ModernBertModel(modernbert()),
        edit=modernbert_legacy,
    ),
)
