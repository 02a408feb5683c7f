"""Rotary positions read from config.json: both spellings, against the frequencies that transformers computes."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from bei.adapters.base import HfConfig
from bei.adapters.config import DynamicNtk, LinearScaling, Rope
from bei.adapters.rope import layer_parameters, read_rope
from bei.compiler.positions import inv_freq, ntk_growth
from bei.errors import UnsupportedConfig

Config = dict[str, Any]
LLAMA3: Config = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SCALINGS: tuple[Config, ...] = (
    {},
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.5},
    {"type": "linear", "factor": 4},
    LLAMA3,
    LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 512},
    {"rope_type": "dynamic", "factor": 2.0},
)


def read(config: Config, **options: Any) -> Rope:
    return read_rope(HfConfig({"model_type": "llama"} | config), 64, **options)


def transformers_rope(config: Config) -> LlamaRotaryEmbedding:
    return LlamaRotaryEmbedding(LlamaConfig(hidden_size=128, num_attention_heads=2, head_dim=64, **config))


@given(scaling=st.sampled_from(SCALINGS), theta=st.floats(2.0, 1e8), new=st.booleans())
@settings(max_examples=60, deadline=None)
def test_both_spellings_give_the_frequencies_of_transformers(
    scaling: Config, theta: float, new: bool
) -> None:
    config: Config = {"max_position_embeddings": 16384}
    if new:
        config |= {"rope_parameters": scaling | {"rope_theta": theta}}
    else:
        config |= {"rope_theta": theta, "rope_scaling": scaling or None}
    expected = transformers_rope(
        {k: dict(v) if isinstance(v, dict) else v for k, v in config.items()}
    ).inv_freq
    np.testing.assert_allclose(inv_freq(read(config)), expected.numpy(), rtol=3e-6)


@pytest.mark.parametrize("length", [1, 40, 41, 64, 200])
def test_dynamic_scaling_grows_as_in_transformers(length: int) -> None:
    config: Config = {
        "max_position_embeddings": 40,
        "rope_theta": 500.0,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }
    rope = read(config)
    assert rope.scaling == DynamicNtk(factor=2.0, trained_positions=40)
    theirs = transformers_rope(config | {"rope_scaling": dict(config["rope_scaling"])})
    cos, _ = theirs(torch.zeros(1), torch.arange(length)[None])
    grow = ntk_growth(rope)
    theta = rope.theta * max(1.0, grow.slope * length + grow.offset) ** grow.power
    freq = theta ** (-np.arange(0, 64, 2) / 64)
    ours = np.cos(np.arange(length)[:, None] * np.concatenate([freq, freq]))
    np.testing.assert_allclose(cos[0].numpy(), ours, atol=2e-5)


def test_scaling_of_the_old_spelling_comes_first() -> None:
    """As in transformers, where a config holds both."""
    both = {
        "rope_theta": 10.0,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "default", "rope_theta": 20.0},
    }
    assert read(both) == Rope(theta=10.0, dim=64, scaling=LinearScaling(factor=2.0))


def test_a_layer_type_has_its_own_entry() -> None:
    hf = HfConfig({"rope_parameters": {"full_attention": {"rope_theta": 7.0}, "sliding_attention": None}})
    assert read_rope(hf, 8, parameters=layer_parameters(hf, "full_attention")) == Rope(theta=7.0, dim=8)
    assert layer_parameters(hf, "sliding_attention") == layer_parameters(HfConfig({}), "full_attention") == {}


def test_the_config_outweighs_the_scaling_on_the_trained_length() -> None:
    config = {"rope_theta": 5e5, "rope_scaling": LLAMA3, "original_max_position_embeddings": 512}
    expected = transformers_rope(
        config | {"rope_scaling": dict(LLAMA3), "max_position_embeddings": 16384}
    ).inv_freq
    np.testing.assert_allclose(inv_freq(read(config)), expected.numpy(), rtol=3e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
            "rope type 'yarn', but the adapter knows default, linear",
        ),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope type 'longrope'"),
        ({"rope_parameters": {"rope_type": "new"}}, "rope type 'new'"),
        ({"rope_scaling": {"type": "linear"}}, "no 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor=0.5, but the adapter needs at least 1"),
        (
            {"rope_scaling": {"type": "linear", "factor": "2"}},
            "factor='2', but the adapter needs a finite number",
        ),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "0 < low_freq_factor < high_freq_factor"),
        (
            {"rope_scaling": {k: v for k, v in LLAMA3.items() if "original" not in k}},
            "no 'original_max_position_embeddings'",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "no 'max_position_embeddings'"),
        ({"rope_scaling": "linear"}, "rope_scaling='linear', but the adapter needs an object"),
        ({"rope_theta": 0}, "rope_theta=0, but the adapter needs a positive number"),
        ({"rope_theta": None}, "rope_theta=None, but the adapter needs a finite number"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5, but the adapter needs 1.0"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.25}},
            "partial_rotary_factor",
        ),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "an entry per layer type"),
    ],
)
def test_refusals(config: Config, message: str) -> None:
    with pytest.raises(UnsupportedConfig, match=message):
        read({"rope_theta": 10000.0} | config)


def test_a_missing_theta_is_refused_unless_the_family_has_one() -> None:
    with pytest.raises(UnsupportedConfig, match="no 'rope_theta'"):
        read({})
    assert read({}, default_theta=10.0).theta == 10.0
