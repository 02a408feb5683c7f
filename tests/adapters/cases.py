"""One row per architecture: the tiny model that proves its adapter. Switch on what the family can do."""

from typing import Any

from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from bei.adapters.bert import BERT
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

CASES = (
    Case(adapter=BERT, name="bert", model=lambda: BertModel(BertConfig(**TINY))),
    Case(
        adapter=ROBERTA,
        name="roberta",
        model=lambda: RobertaModel(RobertaConfig(**TINY, pad_token_id=1, type_vocab_size=1)),
    ),
)
