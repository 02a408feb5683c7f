"""RoBERTa, XLM-RoBERTa, CamemBERT: BERT's layers; positions are counted from the padding id, one token type."""

from dataclasses import replace

from bei.adapters.base import Adapter, HfConfig, TaskHead, head_rows
from bei.adapters.bert import BERT, labels
from bei.adapters.bert import config as bert_config
from bei.adapters.config import EncoderConfig
from bei.adapters.head import Dense
from bei.errors import UnsupportedConfig


def config(hf: HfConfig) -> EncoderConfig:
    pad = hf.get("pad_token_id", 1)
    if not isinstance(pad, int) or isinstance(pad, bool) or pad < 0:
        raise UnsupportedConfig(
            f"{hf.name}: pad_token_id={pad!r}, but positions are counted from it: need an index"
        )
    return replace(bert_config(hf), position_pad=pad)


def sequence_head(hf: HfConfig) -> TaskHead:
    """classifier.out_proj(tanh(classifier.dense(first token))); there is no pooler"""
    rows = head_rows(("dense", "classifier.dense"), ("out_proj", "classifier.out_proj"))
    steps = (
        Dense(name="head.dense", out=hf.size("hidden_size"), act="tanh"),
        Dense(name="head.out_proj", out=labels(hf)),
    )
    return TaskHead(pooling=("cls",), steps=steps, weights=rows)


ROBERTA: Adapter = replace(
    BERT,
    name="roberta",
    model_types=("roberta", "xlm-roberta", "camembert"),
    config=config,
    prefixes=("", "roberta."),
    ignore=(*BERT.ignore, "lm_head.*"),
    sequence_head=sequence_head,
)
