"""NomicBERT's config.json in its two spellings: the Hub's, with GPT-2's keys, and transformers 5's.

"n_embd": 768, "n_inner": 3072, "rotary_emb_base": 1000, "rotary_scaling_factor": 2                     (the Hub)
"hidden_size": 768, "intermediate_size": 3072, "rope_parameters": {"rope_theta": 1000, …}     (transformers 5)
"""

from collections.abc import Mapping
from typing import Any

from bei.adapters.base import HfConfig
from bei.adapters.rope import flat_parameters
from bei.errors import UnsupportedConfig

GATED = {"swiglu": "silu", "geglu": "gelu"}


def native(hf: HfConfig) -> HfConfig:
    """GPT-2's keys in transformers' spelling; refused where a config with both contradicts itself."""
    if "n_embd" not in hf:
        return hf
    act = hf.choice("activation_function", {**GATED, "gelu": "gelu"})
    inner = hf.size("n_inner")
    values = {
        "hidden_size": hf["n_embd"],
        "num_hidden_layers": hf["n_layer"],
        "num_attention_heads": hf["n_head"],
        "intermediate_size": -(-inner // 256) * 256 if hf["activation_function"] in GATED else inner,
        "hidden_act": act,
        "layer_norm_eps": hf["layer_norm_epsilon"],
        "rope_parameters": _rope_parameters(hf),
    }
    for key, value in values.items():
        if hf.get(key, value) != value:
            raise UnsupportedConfig(
                f"{hf.name}: {key}={hf[key]!r}, but the older keys beside it say {value!r}. "
                "Use the revision whose config.json has one of the two."
            )
    if hf.get("rotary_scaling_factor"):
        values["max_position_embeddings"] = hf.size("max_trained_positions", 2048)
    return HfConfig({**hf, **values})


def _rope_parameters(hf: HfConfig) -> Mapping[str, Any]:
    """A silent `rotary_scaling_factor` leaves the scaling to the newer keys."""
    theta = hf.number("rotary_emb_base")
    if hf.get("rotary_scaling_factor"):
        return {"rope_type": "dynamic", "rope_theta": theta, "factor": hf.number("rotary_scaling_factor")}
    return {**(flat_parameters(hf) or {"rope_type": "default"}), "rope_theta": theta}
