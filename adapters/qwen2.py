"""Qwen2: Llama's layers with biases on q, k and v. Causal (nomic-embed-code) or not (gte-Qwen2).

The gte checkpoints bring `modeling_qwen.py`, whose Qwen2Model looks both ways; early revisions say so nowhere else.
"""

from collections.abc import Sequence
from dataclasses import replace

from bei.adapters.base import HfConfig, Rows, view
from bei.adapters.config import EncoderConfig
from bei.adapters.llama import LLAMA, backbone
from bei.adapters.llama import weights as llama_weights
from bei.adapters.visibility import FULL, SLIDING, is_causal, layer_types, window

GTE_CODE = tuple(
    f"modeling_qwen.Qwen2{kind}" for kind in ("Model", "ForCausalLM", "ForSequenceClassification")
)


def windows(hf: HfConfig, causal: bool) -> Sequence[int | None]:
    """Layers from `max_window_layers` on have a window, where `use_sliding_window` says so."""
    count = hf.size("num_hidden_layers")
    first = hf.number("max_window_layers", 28) if hf.get("use_sliding_window", False) else count
    derived = [SLIDING if i >= first and hf.get("sliding_window") else FULL for i in range(count)]
    return [window(hf, causal) if kind == SLIDING else None for kind in layer_types(hf, derived)]


def config(hf: HfConfig) -> EncoderConfig:
    causal = is_causal(hf, "Qwen2", bidirectional=GTE_CODE[:1])
    return backbone(hf, causal=causal, windows=windows(hf, causal))


def weights(cfg: EncoderConfig) -> Rows:
    yield from llama_weights(cfg)
    for i in range(len(cfg.layers)):
        for x in ("q", "k", "v"):
            yield f"layers.{i}.{x}.bias", view(f"layers.{i}.self_attn.{x}_proj.bias")


QWEN2 = replace(
    LLAMA,
    name="qwen2",
    model_types=("qwen2",),
    config=config,
    weights=weights,
    remote_code=GTE_CODE,
    code_repositories=("Alibaba-NLP/gte-Qwen2-1.5B-instruct", "Alibaba-NLP/gte-Qwen2-7B-instruct"),
)
