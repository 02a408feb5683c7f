"""Models of known shapes with random weights, as Hugging Face writes them, and batches for timing them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bei.adapters.base import HfConfig
from bei.adapters.config import EncoderConfig
from bei.adapters.registry import adapter_for
from bei.compiler.checkpoint.stored import StoredTensor
from bei.compiler.weights import Weight, find_prefix, resolve, strip_prefix
from bei.runtime.executor import Row

Lengths = Sequence[int]
VOCAB = 30000

_GEMMA_ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-base": ("Bert", {}),
    "bert-large": (
        "Bert",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    ),
    "minilm-l6": ("Bert", {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}),
    "modernbert-base": ("ModernBert", {}),
    "nomic-v1.5": ("NomicBert", {}),
    "qwen3-0.6b": (
        "Qwen3",
        {
            "vocab_size": 32768,
            "hidden_size": 1024,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 3072,
        },
    ),
    "embeddinggemma": (
        "Gemma3Text",
        {
            "vocab_size": 32768,
            "hidden_size": 768,
            "num_hidden_layers": 24,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "intermediate_size": 1152,
            "sliding_window": 512,
            "query_pre_attn_scalar": 256,
            "use_bidirectional_attention": True,
            "layer_types": ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(24)],
            "rope_parameters": _GEMMA_ROPE,
        },
    ),
}
"""transformers' class prefix and what differs from its defaults; vocabularies are cut to 32,768."""


def config_of(name: str) -> HfConfig:
    """As its config.json would be read."""
    import transformers

    prefix, changes = SHAPES[name]
    config = getattr(transformers, f"{prefix}Config")(**changes)
    return HfConfig(json.loads(config.to_json_string(use_diff=False)))


def make(name: str, folder: Path) -> Any:
    """A random model of a known size, saved to ``folder``; returns it in evaluation mode."""
    import transformers

    prefix, changes = SHAPES[name]
    config = getattr(transformers, f"{prefix}Config")(**changes)
    torch.manual_seed(0)
    model = getattr(transformers, f"{prefix}Model")(config).eval()
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


def rows_of(lengths: Lengths) -> list[Row]:
    """Random ids."""
    rng = np.random.default_rng(0)
    return [Row(ids=rng.integers(5, VOCAB, n).astype(np.int32), types=np.zeros(n, np.int32)) for n in lengths]


def ragged(tokens: int, longest: int = 512) -> list[int]:
    """Lognormal lengths (mean about 100) that make up ``tokens``."""
    rng = np.random.default_rng(0)
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(int(min(longest, tokens - sum(lengths), max(3, rng.lognormal(4.2, 0.9)))))
    return lengths


def padded(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and mask [B, L] on the GPU."""
    longest = max(row.ids.size for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for line, row in enumerate(rows):
        ids[line, : row.ids.size] = torch.from_numpy(row.ids.astype(np.int64))
        mask[line, : row.ids.size] = 1
    return ids.cuda(), mask.cuda()
