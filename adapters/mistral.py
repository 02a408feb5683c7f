"""Mistral: Llama's layers, all of them with one sliding window. Causal unless it says otherwise."""

from dataclasses import replace

from bei.adapters.base import HfConfig
from bei.adapters.config import EncoderConfig
from bei.adapters.llama import LLAMA, backbone
from bei.adapters.visibility import FULL, SLIDING, is_causal, layer_types, window
from bei.errors import UnsupportedConfig


def config(hf: HfConfig) -> EncoderConfig:
    causal, count = is_causal(hf, "Mistral"), hf.size("num_hidden_layers")
    kind = FULL if hf["sliding_window"] is None else SLIDING
    if set(layer_types(hf, [kind] * count)) != {kind}:
        raise UnsupportedConfig(
            f"mistral: layer_types differ from layer to layer or from sliding_window={hf['sliding_window']!r}, "
            "which transformers' Mistral ignores. Such checkpoints are Ministral and have no adapter yet."
        )
    return backbone(hf, causal=causal, windows=[window(hf, causal) if kind == SLIDING else None] * count)


MISTRAL = replace(LLAMA, name="mistral", model_types=("mistral",), config=config)
