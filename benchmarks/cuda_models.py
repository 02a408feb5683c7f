"""Models of known shapes with random weights, as Hugging Face writes them, for timing."""

import json
from pathlib import Path
from typing import Any

import torch

from bei.adapters.base import HfConfig
from bei.adapters.config import EncoderConfig
from bei.adapters.registry import adapter_for
from bei.compiler.checkpoint.stored import StoredTensor
from bei.compiler.weights import Weight, find_prefix, resolve, strip_prefix

SHAPES: dict[str, dict[str, int]] = {
    "bert-base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "bert-large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "minilm-l6": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
}
"""BERT family sizes; vocabulary 30522, 512 positions."""


def make(name: str, folder: Path) -> Any:
    """A random BertModel of a known size, saved to ``folder``; returns it in evaluation mode."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig(**SHAPES[name]), add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    return model


def read(folder: Path) -> tuple[EncoderConfig, dict[str, Weight]]:
    """Config and weights of a folder with one safetensors file, through its adapter."""
    hf = HfConfig(json.loads((folder / "config.json").read_text()))
    adapter = adapter_for(hf)
    cfg = adapter.config(hf)
    tensors = _header(folder / "model.safetensors")
    rows = list(adapter.weights(cfg))
    probe = next(source.name for name, source in rows if name == "embed.tokens.weight")  # type: ignore[union-attr]
    tensors = strip_prefix(find_prefix(adapter.prefixes, probe, tensors), tensors)
    return cfg, resolve(adapter.name, rows, tensors, folder, adapter.ignore)


def _header(file: Path) -> dict[str, StoredTensor]:
    with open(file, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(
            name=name,
            file=file.name,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            offset=8 + size + entry["data_offsets"][0],
            nbytes=entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }
