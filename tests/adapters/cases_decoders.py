"""The decoder families of `cases`: causal, bidirectional in each spelling, windows, thetas and scalings that show."""

from collections.abc import Callable
from typing import Any

from transformers import (
    EuroBertConfig,
    EuroBertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
)

from bei.adapters.eurobert import EUROBERT
from bei.adapters.gemma3 import GEMMA3
from bei.adapters.llama import LLAMA
from bei.adapters.llama_bidirec import LLAMA_BIDIREC
from bei.adapters.mistral import MISTRAL
from bei.adapters.qwen2 import QWEN2
from bei.adapters.qwen3 import QWEN3
from tests.adapters.tiny import Case

Config = dict[str, Any]

DECODER: Config = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "rms_norm_eps": 0.02,
    "rope_parameters": {"rope_type": "default", "rope_theta": 70.0},
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WIDE: Config = DECODER | {"head_dim": 16}
"""Heads wider than their share of the residual stream, as in Qwen3-Embedding."""

LLAMA3: Config = {
    "rope_type": "llama3",
    "rope_theta": 70.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 20,
}

SLIDING, FULL = "sliding_attention", "full_attention"
GEMMA: Config = WIDE | {
    "num_hidden_layers": 3,
    "layer_types": [SLIDING, FULL, SLIDING],
    "sliding_window": 8,
    "query_pre_attn_scalar": 24,
    "use_bidirectional_attention": True,
    "rope_parameters": {
        FULL: {"rope_type": "default", "rope_theta": 900.0},
        SLIDING: {"rope_type": "default", "rope_theta": 30.0},
    },
}


def old_rope(config: Config) -> Config:
    """`rope_theta` and `rope_scaling`, as transformers 4 wrote them."""
    rope = config.pop("rope_parameters")
    theta = rope.pop("rope_theta")
    return config | {"rope_theta": theta, "rope_scaling": rope if rope["rope_type"] != "default" else None}


def gemma_hub(config: Config) -> Config:
    """As google/embeddinggemma-300m spells it: the pattern instead of every layer's type, two thetas."""
    rope = config.pop("rope_parameters")
    config.pop("layer_types")
    return config | {
        "sliding_window_pattern": 2,
        "rope_theta": rope[FULL]["rope_theta"],
        "rope_local_base_freq": rope[SLIDING]["rope_theta"],
        "rope_scaling": None,
        "torch_dtype": config.pop("dtype"),
    }


def gte(config: Config) -> Config:
    """As Alibaba-NLP/gte-Qwen2-*: the model's own code, and in early revisions no other sign of a direction."""
    config.pop("is_causal")
    config.pop("layer_types")
    return old_rope(config) | {
        "architectures": ["Qwen2ForCausalLM"],
        "auto_map": {
            "AutoModel": "modeling_qwen.Qwen2Model",
            "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM",
            "AutoModelForSequenceClassification": "modeling_qwen.Qwen2ForSequenceClassification",
        },
        "sliding_window": 131072,
        "max_window_layers": 1,
        "use_sliding_window": False,
    }


def voyage(config: Config) -> Config:
    """As voyageai/voyage-4-nano before its native revision."""
    config.pop("is_causal")
    config.pop("layer_types")
    return old_rope(config) | {
        "architectures": ["Qwen3ForCausalLM"],
        "auto_map": {"AutoModel": "modeling_qwen3_bidirectional.Qwen3BidirectionalModel"},
        "num_labels": 2048,
        "use_bidirectional_attention": True,
    }


def llama_bidirec(config: Config) -> Config:
    """As nvidia/llama-embed-nemotron-8b."""
    config.pop("is_causal")
    return old_rope(config) | {
        "model_type": "llama_bidirec",
        "architectures": ["LlamaBidirectionalModel"],
        "auto_map": {
            "AutoConfig": "llama_bidirectional_model.LlamaBidirectionalConfig",
            "AutoModel": "llama_bidirectional_model.LlamaBidirectionalModel",
        },
        "pooling": "avg",
        "temperature": 1.0,
    }


def llama(**changes: Any) -> Callable[[], LlamaModel]:
    return lambda: LlamaModel(LlamaConfig(**DECODER | changes))


def qwen2(**changes: Any) -> Callable[[], Qwen2Model]:
    return lambda: Qwen2Model(Qwen2Config(**DECODER | changes))


def qwen3(**changes: Any) -> Callable[[], Qwen3Model]:
    return lambda: Qwen3Model(Qwen3Config(**WIDE | changes))


def mistral(**changes: Any) -> Callable[[], MistralModel]:
    return lambda: MistralModel(MistralConfig(**DECODER | changes))


def gemma3(**changes: Any) -> Callable[[], Gemma3TextModel]:
    return lambda: Gemma3TextModel(Gemma3TextConfig(**GEMMA | changes))


WINDOW: Config = {
    "num_hidden_layers": 3,
    "use_sliding_window": True,
    "sliding_window": 4,
    "max_window_layers": 1,
}
"""The first layer sees all."""

AROUND_4 = (1, 3, 4, 5, 12, 40)
"""Lengths around a window of 4, and the longest."""
AROUND_8 = (1, 3, 4, 5, 7, 8, 9, 40)
"""Around a window of 8, which is 4 on each side."""


DECODER_CASES = (
    Case(adapter=LLAMA, name="llama", model=llama()),
    Case(
        adapter=LLAMA, name="llama-3", model=llama(rope_parameters=LLAMA3), edit=old_rope, lengths=(1, 7, 40)
    ),
    Case(
        adapter=LLAMA,
        name="llama-linear-bidirectional",
        model=llama(is_causal=False, rope_parameters={**LLAMA3, "rope_type": "linear", "factor": 2.0}),
    ),
    Case(
        adapter=LLAMA,
        name="llama-dynamic",
        model=llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 70.0, "factor": 2.0}),
        edit=old_rope,
        lengths=(
            60,
        ),  # beyond max_position_embeddings, where transformers scales a batch as its longest text
    ),
    Case(
        adapter=LLAMA_BIDIREC,
        name="llama_bidirec",
        model=llama(is_causal=False, rope_parameters=LLAMA3),
        edit=llama_bidirec,
        lengths=(1, 7, 40),
    ),
    Case(adapter=MISTRAL, name="mistral", model=mistral(sliding_window=4), lengths=AROUND_4),
    Case(adapter=MISTRAL, name="mistral-itself-alone", model=mistral(sliding_window=1), lengths=(1, 2, 5)),
    Case(adapter=MISTRAL, name="mistral-no-window", model=mistral(sliding_window=None)),
    Case(
        adapter=MISTRAL,
        name="mistral-bidirectional",
        model=mistral(sliding_window=4, is_causal=False),
        lengths=(*AROUND_4, 6),
    ),
    Case(adapter=QWEN2, name="qwen2", model=qwen2()),
    Case(adapter=QWEN2, name="qwen2-window", model=qwen2(**WINDOW), lengths=AROUND_4),
    Case(adapter=QWEN2, name="qwen2-bidirectional", model=qwen2(is_causal=False)),
    Case(adapter=QWEN2, name="qwen2-gte", model=qwen2(is_causal=False), edit=gte),
    Case(adapter=QWEN3, name="qwen3", model=qwen3()),
    Case(
        adapter=QWEN3,
        name="qwen3-window-bidirectional",
        model=qwen3(**WINDOW, layer_types=[SLIDING, FULL, SLIDING], is_causal=False),
        lengths=(*AROUND_4, 6),
    ),
    Case(adapter=QWEN3, name="qwen3-voyage", model=qwen3(is_causal=False), edit=voyage),
    Case(adapter=GEMMA3, name="gemma3", model=gemma3(), lengths=AROUND_8),
    Case(adapter=GEMMA3, name="gemma3-hub", model=gemma3(), edit=gemma_hub, lengths=AROUND_8),
    Case(
        adapter=GEMMA3,
        name="gemma3-causal",
        model=gemma3(use_bidirectional_attention=False, sliding_window=4),
        lengths=AROUND_4,
    ),
    Case(
        adapter=EUROBERT,
        name="eurobert",
        model=lambda: EuroBertModel(EuroBertConfig(**DECODER, mask_token_id=3)),
    ),
)
