"""Reading rotary positions from config.json, in the old spelling and the new one.

    "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, ...}      (before transformers 5)
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}                     (transformers 5)
    "rope_parameters": {"full_attention": {...}, "sliding_attention": {...}}                 (a theta per layer type)

Precedence is transformers' (`RotaryEmbeddingConfigMixin`): a non-empty `rope_scaling` before `rope_parameters`, and a
theta inside either before the top-level `rope_theta`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from bei.adapters.base import HfConfig, expect
from bei.adapters.config import DynamicNtk, LinearScaling, Llama3Scaling, Rope, RopeScaling
from bei.errors import UnsupportedConfig

ORIGINAL = "original_max_position_embeddings"
TOP_LEVEL = ("model_type", "rope_theta", "partial_rotary_factor")
"""What may stand beside the rope entry instead of in it."""


def read_rope(
    hf: HfConfig,
    head_dim: int,
    *,
    default_theta: float | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Rope:
    """Half-split rotary positions over all ``head_dim`` features.

    ``parameters`` are one layer type's (`layer_parameters`), read instead of the config's own. ``default_theta`` serves
    where no theta is written; None then refuses. Raises UnsupportedConfig for a rope type that is not default, linear,
    dynamic or llama3, for partial rotation, and for a scaling that lacks a number.
    """
    around = {key: hf[key] for key in TOP_LEVEL if key in hf}
    rope = HfConfig(around | dict(flat_parameters(hf) if parameters is None else parameters))
    expect(rope, partial_rotary_factor=1.0, attention_factor=1.0)
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    if kind not in SCALINGS:
        raise UnsupportedConfig(
            f"{hf.name}: rope type {kind!r}, but the adapter knows {', '.join(SCALINGS)}. "
            "Use a checkpoint without it, or add the scaling to adapters/rope.py and compiler/positions.py."
        )
    theta = rope.number("rope_theta", default_theta)
    if theta <= 0:
        raise UnsupportedConfig(f"{hf.name}: rope_theta={theta:g}, but the adapter needs a positive number")
    return Rope(theta=theta, dim=head_dim, scaling=SCALINGS[kind](hf, rope))


def flat_parameters(hf: HfConfig) -> Mapping[str, Any]:
    """`rope_scaling` or `rope_parameters`, whichever is written; refused where it differs between layer types."""
    found = mapping(hf, "rope_scaling") or mapping(hf, "rope_parameters")
    if any(isinstance(value, Mapping) for value in found.values()):
        raise UnsupportedConfig(
            f"{hf.name}: rope_parameters has an entry per layer type ({', '.join(found)}), "
            "but the adapter needs one for all layers"
        )
    return found


def layer_parameters(hf: HfConfig, layer_type: str) -> Mapping[str, Any]:
    """``layer_type``'s own entry of `rope_parameters`; empty where there is none (the old spelling)."""
    return mapping(HfConfig({"model_type": hf.name, **mapping(hf, "rope_parameters")}), layer_type)


def mapping(hf: HfConfig, key: str) -> Mapping[str, Any]:
    """An object of config.json, empty where it is absent or null; raises UnsupportedConfig for anything else."""
    found = hf.get(key, {})
    if not isinstance(found, Mapping):
        raise UnsupportedConfig(f"{hf.name}: {key}={found!r}, but the adapter needs an object")
    return found


def _default(hf: HfConfig, rope: HfConfig) -> None:
    return None


def _linear(hf: HfConfig, rope: HfConfig) -> RopeScaling:
    return LinearScaling(factor=_at_least_one(rope, "factor"))


def _dynamic(hf: HfConfig, rope: HfConfig) -> RopeScaling:
    """Trained length: max_position_embeddings, as in transformers."""
    return DynamicNtk(
        factor=_at_least_one(rope, "factor"), trained_positions=hf.size("max_position_embeddings")
    )


def _llama3(hf: HfConfig, rope: HfConfig) -> RopeScaling:
    """Trained length: the config's own original_max_position_embeddings before the scaling's."""
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if not 0 < low < high:
        raise UnsupportedConfig(
            f"{hf.name}: low_freq_factor={low:g} and high_freq_factor={high:g}, "
            "but the adapter needs 0 < low_freq_factor < high_freq_factor"
        )
    return Llama3Scaling(
        factor=_at_least_one(rope, "factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_positions=(rope if hf.get(ORIGINAL) is None else hf).size(ORIGINAL),
    )


def _at_least_one(rope: HfConfig, key: str) -> float:
    value = rope.number(key)
    if value < 1:
        raise UnsupportedConfig(f"{rope.name}: rope {key}={value:g}, but the adapter needs at least 1")
    return value


SCALINGS: dict[str, Callable[[HfConfig, HfConfig], RopeScaling | None]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
}
