"""The parity tests can fail: with any one fact of a decoder's config changed, its tiny model is visibly another."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor

from bei.adapters.config import EncoderConfig, Layer, Rope
from bei.compiler.lowering.torch_ops import run_torch
from bei.compiler.weights import Weight
from tests.adapters.cases_decoders import DECODER_CASES
from tests.adapters.tiny import HIDDEN_STATES, Loaded, batch, load, save

Change = Callable[[Loaded], Loaded]
SEEN = 1e-3
"""A hundred times the tolerance of the parity test."""
FAINT = {"erf gelu": 1e-4, "embedding scale in bfloat16": 1e-4}
"""The two forms of GELU differ by at most 5e-4, √32 and its rounding to bfloat16 by one part in ten thousand."""


@cache
def reference(name: str) -> tuple[Loaded, Tensor, Tensor, Tensor]:
    """The case as loaded (weights in memory), ids, mask, and Hugging Face's hidden states of real tokens [T, D]."""
    case = next(case for case in DECODER_CASES if case.name == name)
    with TemporaryDirectory() as folder:
        model = save(case, Path(folder))
        loaded = load(Path(folder))
        kept = {n: replace(w, scale=1.0, data=w.float32().copy()) for n, w in loaded.weights.items()}
    ids, mask = batch(case.lengths, loaded.cfg.vocab)
    with torch.inference_mode():
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return replace(loaded, weights=kept), ids, mask, states[mask.bool()]


def difference(name: str, change: Change) -> float:
    """Largest absolute difference from Hugging Face after ``change``."""
    loaded, ids, mask, expected = reference(name)
    changed = change(loaded)
    ours = run_torch(changed.cfg, HIDDEN_STATES, changed.weights, ids, mask)
    return float((ours[mask.bool()] - expected).abs().max())


def config(edit: Callable[[EncoderConfig], dict[str, Any]]) -> Change:
    return lambda loaded: replace(loaded, cfg=replace(loaded.cfg, **edit(loaded.cfg)))


def layers(edit: Callable[[Layer], Layer]) -> Change:
    return config(lambda cfg: {"layers": tuple(edit(layer) for layer in cfg.layers)})


def rope(edit: Callable[[Rope], dict[str, Any]]) -> Change:
    def of_layer(layer: Layer) -> Layer:
        assert layer.rope is not None
        return replace(layer, rope=replace(layer.rope, **edit(layer.rope)))

    return layers(of_layer)


def scaling(**values: Any) -> Change:
    def edit(rope: Rope) -> dict[str, Any]:
        assert rope.scaling is not None
        return {"scaling": replace(rope.scaling, **values)}

    return rope(edit)


def window(by: int) -> Change:
    return layers(lambda layer: layer if layer.window is None else replace(layer, window=layer.window + by))


def thetas_swapped(cfg: EncoderConfig) -> dict[str, Any]:
    """Full layers get the sliding layers' rope and the reverse."""
    of = {layer.window is None: layer.rope for layer in cfg.layers}
    return {"layers": tuple(replace(layer, rope=of[layer.window is not None]) for layer in cfg.layers)}


def weights(edit: Callable[[dict[str, Weight]], dict[str, Weight]]) -> Change:
    return lambda loaded: replace(loaded, weights=edit(dict(loaded.weights)))


def swapped(one: str, other: str) -> Change:
    def edit(all_weights: dict[str, Weight]) -> dict[str, Weight]:
        return {
            n: all_weights[n.replace(one, "*").replace(other, one).replace("*", other)] for n in all_weights
        }

    return weights(edit)


def dropped(ending: str) -> Change:
    return weights(lambda all_weights: {n: w for n, w in all_weights.items() if not n.endswith(ending)})


def plain_weight(ending: str) -> Change:
    """Gemma's norms without the 1 of 1 + w."""

    def lower(w: Weight) -> Weight:
        assert w.data is not None
        return replace(w, data=w.data - 1)

    return weights(
        lambda all_weights: {n: lower(w) if n.endswith(ending) else w for n, w in all_weights.items()}
    )


EVERYONE = ("llama", "llama_bidirec", "mistral", "qwen2", "qwen3", "gemma3", "eurobert")
CAUSAL = ("llama", "mistral", "qwen2", "qwen3", "gemma3-causal")
BIDIRECTIONAL = ("llama_bidirec", "qwen2-gte", "qwen3-voyage", "gemma3", "eurobert")
WINDOWED = (
    "mistral",
    "mistral-bidirectional",
    "qwen2-window",
    "qwen3-window-bidirectional",
    "gemma3",
    "gemma3-causal",
)

MUTATIONS: dict[str, tuple[tuple[str, ...], Change]] = {
    "direction": ((*CAUSAL, *BIDIRECTIONAL), config(lambda cfg: {"causal": not cfg.causal})),
    "window one more": (WINDOWED, window(1)),
    "window one less": (WINDOWED, window(-1)),
    "no window": (WINDOWED, layers(lambda layer: replace(layer, window=None))),
    "window of another layer": (
        ("qwen2-window", "qwen3-window-bidirectional", "gemma3"),
        config(lambda cfg: {"layers": (*cfg.layers[1:], cfg.layers[0])}),
    ),
    "theta": (EVERYONE, rope(lambda rope: {"theta": rope.theta * 1.1})),
    "thetas swapped": (("gemma3", "gemma3-hub", "gemma3-causal"), config(thetas_swapped)),
    "no rope": (EVERYONE, layers(lambda layer: replace(layer, rope=None))),
    "rope interleaved": (EVERYONE, rope(lambda rope: {"interleaved": True})),
    "rope partial": (EVERYONE, rope(lambda rope: {"dim": rope.dim // 2})),
    "no scaling": (
        ("llama-3", "llama_bidirec", "llama-linear-bidirectional"),
        rope(lambda rope: {"scaling": None}),
    ),
    "scaling factor": (("llama-3", "llama-linear-bidirectional", "llama-dynamic"), scaling(factor=3.0)),
    "trained positions": (("llama-dynamic",), scaling(trained_positions=30)),
    "low frequencies": (("llama-3",), scaling(low_freq_factor=2.0)),
    "high frequencies": (("llama-3",), scaling(high_freq_factor=8.0)),
    "trained length": (("llama-3",), scaling(original_positions=40)),
    "attention scale": (EVERYONE, config(lambda cfg: {"attn_scale": cfg.attn_scale * 1.1})),
    "attention scale of the head": (("gemma3",), config(lambda cfg: {"attn_scale": cfg.head_dim**-0.5})),
    "soft cap": (EVERYONE, config(lambda cfg: {"softcap": 1.0})),
    "eps": (EVERYONE, config(lambda cfg: {"norm_eps": cfg.norm_eps * 1.5})),
    "q/k eps": (("qwen3", "gemma3"), config(lambda cfg: {"qk_norm_eps": cfg.qk_norm_eps * 1.5})),
    "no q/k norm": (("qwen3", "gemma3"), config(lambda cfg: {"qk_norm": None})),
    "norm kind": (EVERYONE, config(lambda cfg: {"norm": "layer"})),
    "no final norm": (EVERYONE, config(lambda cfg: {"final_norm": False})),
    "norm placement": (EVERYONE, config(lambda cfg: {"placement": "post"})),
    "no sandwich": (("gemma3",), config(lambda cfg: {"placement": "pre"})),
    "embedding scale": (("gemma3",), config(lambda cfg: {"embed_scale": 1.0})),
    "embedding scale in bfloat16": (("gemma3",), config(lambda cfg: {"embed_scale": 5.65625})),
    "activation": (EVERYONE, config(lambda cfg: {"act": "relu"})),
    "erf gelu": (("gemma3",), config(lambda cfg: {"act": "gelu"})),
    "gate and up": (EVERYONE, swapped(".gate.", ".up.")),
    "q and k norms": (("qwen3", "gemma3"), swapped(".q_norm.", ".k_norm.")),
    "attention and MLP norms": (EVERYONE, swapped(".attn_norm.", ".ffn_norm.")),
    "inner and outer norms": (("gemma3",), swapped(".attn_norm.", ".attn_out_norm.")),
    "biases": (("qwen2", "qwen2-gte"), dropped(".bias")),
    "1 + w of layers": (("gemma3",), plain_weight(".attn_norm.weight")),
    "1 + w of q": (("gemma3",), plain_weight(".q_norm.weight")),
    "1 + w of the end": (("gemma3",), plain_weight("final_norm.weight")),
}


@pytest.mark.parametrize("case", DECODER_CASES, ids=lambda case: case.name)
def test_unchanged_there_is_no_difference(case: Any) -> None:
    assert difference(case.name, lambda loaded: loaded) < 1e-5


@pytest.mark.parametrize(
    ("mutation", "case"),
    [(mutation, case) for mutation, (cases, _) in MUTATIONS.items() for case in cases],
)
def test_parity_sees_it(mutation: str, case: str) -> None:
    assert difference(case, MUTATIONS[mutation][1]) > FAINT.get(mutation, SEEN)
