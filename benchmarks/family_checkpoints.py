"""A checkpoint of every family that ``cuda_models`` does not have: full width, real depth, random live weights.

Those of the zoo are its stand-ins at full width; the others are transformers' classes with the sizes of published models.
Vocabularies are small: their tables would be most of the bytes and none of the arithmetic.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bei.adapters.base import HfConfig
from bei.adapters.config import EncoderConfig
from bei.adapters.head import Head, Normalize
from bei.adapters.registry import adapter_for
from bei.compiler.zoo.fact_files import facts_of
from bei.compiler.zoo.fixture import FixtureOptions, plan_fixture, write_fixture
from bei.compiler.zoo.shapes import TensorSpec, dimensions
from bei.compiler.zoo.values import live_values

VOCAB = 32768

ZOO: dict[str, tuple[str, int | None]] = {
    "qwen2-1.5b": ("Alibaba-NLP/gte-Qwen2-1.5B-instruct", None),
    "mistral-7b": ("Salesforce/SFR-Embedding-2_R", 8),
    "llama-bidirectional-1b": ("nvidia/llama-nemotron-rerank-1b-v2", None),
    "gte-large": ("Alibaba-NLP/gte-large-en-v1.5", None),
    "xlm-roberta-large": ("BAAI/bge-m3", None),
    "roberta-base": ("FacebookAI/roberta-base", None),
    "mpnet-base": ("sentence-transformers/all-mpnet-base-v2", None),
    "jina-v2-base": ("jinaai/jina-embeddings-v2-base-en", None),
    "jina-v2-base-code": ("jinaai/jina-embeddings-v2-base-code", None),
}
"""Repository and layers, None: all; what is cut has more than 2 · 10⁹ weights."""

_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
OWN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama-1b": (
        "meta-llama/Llama-3.2-1B",
        "Llama",
        {
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_parameters": _ROPE | {"original_max_position_embeddings": 8192},
        },
    ),
    "eurobert-610m": (
        "EuroBERT/EuroBERT-610m",
        "EuroBert",
        {
            "hidden_size": 1152,
            "num_hidden_layers": 26,
            "num_attention_heads": 18,
            "num_key_value_heads": 6,
            "head_dim": 64,
            "intermediate_size": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 250000.0},
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "mask_token_id": 2,
        },
    ),
    "jina-v3": ("jinaai/jina-embeddings-v3-hf", "JinaEmbeddingsV3", {}),
    "distilbert-base": ("distilbert/distilbert-base-uncased", "DistilBert", {}),
}
"""Repository, transformers' class prefix and what differs from its defaults."""

NAMES = (*ZOO, *OWN)


def write(name: str, folder: Path, layers: int | None = None) -> None:
    """The checkpoint, of its first ``layers`` layers. Raises CheckpointError."""
    if name in ZOO:
        repo, options = _stand_in(name, layers)
        write_fixture(facts_of(repo), folder, options)
        return
    import transformers

    _, prefix, _ = OWN[name]
    model = getattr(transformers, f"{prefix}Model")(_own_config(name, layers))
    depth = model.config.num_hidden_layers
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            spec = TensorSpec(name=key, dtype="F32", shape=tuple(parameter.shape))
            chunks = live_values(spec, seed="0:", norm_centre=1.0, layers=depth, gated=False)
            values = np.concatenate([*chunks])
            parameter.copy_(torch.from_numpy(values.reshape(parameter.shape)))
    model.save_pretrained(folder)


def config_of(name: str) -> tuple[HfConfig, str]:
    """Its config.json, and the dtype that its weights are stored in."""
    if name in ZOO:
        repo, options = _stand_in(name, None)
        facts = facts_of(repo)
        return HfConfig(plan_fixture(facts, options).config), facts.dtype
    return HfConfig(json.loads(_own_config(name, None).to_json_string(use_diff=False))), "F32"


def shape_of(name: str) -> tuple[EncoderConfig, Collection[str], str]:
    """Encoder, canonical names of its weights and their stored dtype, without a checkpoint."""
    hf, dtype = config_of(name)
    adapter = adapter_for(hf)
    cfg = adapter.config(hf)
    return cfg, {canonical for canonical, _ in adapter.weights(cfg)}, dtype


def head_of(cfg: EncoderConfig) -> Head:
    """A causal model's last token has seen all others; other models' tokens are averaged."""
    return Head(task="embed", pooling=("last" if cfg.causal else "mean",), steps=(Normalize(),))


def depth(name: str) -> int:
    """Layers of the published model."""
    if name in ZOO:
        return dimensions(facts_of(ZOO[name][0]).config)["L"]
    return int(_own_config(name, None).num_hidden_layers)


def _stand_in(name: str, layers: int | None) -> tuple[str, FixtureOptions]:
    repo, own = ZOO[name]
    chosen = layers or own or dimensions(facts_of(repo).config)["L"]
    return repo, FixtureOptions(full_width=True, small_vocabulary=True, layers=chosen)


def _own_config(name: str, layers: int | None) -> Any:
    import transformers

    _, prefix, changes = OWN[name]
    config = getattr(transformers, f"{prefix}Config")(vocab_size=VOCAB, **changes)
    config.num_hidden_layers = layers or config.num_hidden_layers
    return config
