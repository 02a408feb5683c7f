"""EuroBERT: Llama's layers, bidirectional by design."""

from dataclasses import replace

from bei.adapters.base import HfConfig, TaskHead, expect, head_rows
from bei.adapters.bert import labels, token_head
from bei.adapters.config import EncoderConfig
from bei.adapters.head import Dense, Pooling
from bei.adapters.llama import LLAMA, backbone

CLASSES = (
    *("EuroBertModel", "EuroBertForMaskedLM"),
    *("EuroBertForSequenceClassification", "EuroBertForTokenClassification"),
)
POOLINGS: dict[str, Pooling] = {"bos": "cls", "mean": "mean"}


def config(hf: HfConfig) -> EncoderConfig:
    expect(hf, attention_bias=False, mlp_bias=False, is_causal=False)
    return backbone(hf, causal=False)


def sequence_head(hf: HfConfig) -> TaskHead:
    """classifier(gelu(dense(pooled))); the default pooling, "late", pools the logits instead and is refused"""
    rows = head_rows(("dense", "dense"), ("classifier", "classifier"))
    steps = (
        Dense(name="head.dense", out=hf.size("hidden_size"), act="gelu"),
        Dense(name="head.classifier", out=labels(hf)),
    )
    key = "clf_pooling" if "clf_pooling" in hf else "classifier_pooling"
    return TaskHead(pooling=(hf.choice(key, POOLINGS, "late"),), steps=steps, weights=rows)


EUROBERT = replace(
    LLAMA,
    name="eurobert",
    model_types=("eurobert",),
    config=config,
    remote_code=("configuration_eurobert.EuroBertConfig", *(f"modeling_eurobert.{name}" for name in CLASSES)),
    code_repositories=tuple(f"EuroBERT/EuroBERT-{size}" for size in ("210m", "610m", "2.1B")),
    sequence_head=sequence_head,
    token_head=token_head,
)
