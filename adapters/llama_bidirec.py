"""NVIDIA's Llama made bidirectional (llama-embed-nemotron, llama-nemotron-rerank): Llama's layers, no mask.

`pooling` and `temperature` belong to its own classes (NVIDIA-NeMo/Automodel, llama_bidirectional/model.py).
"""

from dataclasses import replace

from bei.adapters.base import HfConfig, Shapes, TaskHead, expect, view
from bei.adapters.bert import labels
from bei.adapters.config import EncoderConfig
from bei.adapters.head import Dense, Pooling, Scale
from bei.adapters.llama import LLAMA, backbone
from bei.errors import UnsupportedConfig

POOLINGS: dict[str, Pooling] = {"avg": "mean", "cls": "cls", "last": "last"}


def config(hf: HfConfig) -> EncoderConfig:
    expect(hf, attention_bias=False, mlp_bias=False, is_causal=False, use_bidirectional_attention=True)
    return backbone(hf, causal=False)


def embedding_head(hf: HfConfig, stored: Shapes) -> TaskHead:
    """The checkpoint's own pooling"""
    return TaskHead(pooling=(hf.choice("pooling", POOLINGS, "avg"),), steps=(), weights=())


def sequence_head(hf: HfConfig) -> TaskHead:
    """score(pooled) / temperature, no bias"""
    temperature = hf.number("temperature", 1.0)
    if temperature <= 0:
        raise UnsupportedConfig(
            f"{hf.name}: temperature={temperature:g}, but the adapter needs a positive number"
        )
    return TaskHead(
        pooling=(hf.choice("pooling", POOLINGS, "avg"),),
        steps=(Dense(name="head.score", out=labels(hf)), Scale(factor=1 / temperature)),
        weights=(("head.score.weight", view("score.weight")),),
    )


LLAMA_BIDIREC = replace(
    LLAMA,
    name="llama_bidirec",
    model_types=("llama_bidirec",),
    config=config,
    remote_code=tuple(
        f"*.LlamaBidirectional{kind}" for kind in ("Config", "Model", "ForSequenceClassification")
    ),
    code_repositories=("nvidia/llama-embed-nemotron-8b", "nvidia/llama-nemotron-rerank-1b-v2"),
    sequence_head=sequence_head,
    token_head=None,
    embedding_head=embedding_head,
)
