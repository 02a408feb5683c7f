"""The parity tests can fail: with any one fact of a config changed, its tiny model is visibly another or is refused."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bei.adapters.config import EncoderConfig, RelativeBuckets
from bei.compiler import positions
from bei.compiler.lowering.signature import signature
from bei.compiler.lowering.torch_ops import run_torch
from bei.compiler.weights import check_shapes
from bei.errors import WeightMismatch
from tests.adapters.cases import CASES
from tests.adapters.mutations import Weights, changed, facts, in_force, of_config, of_weights
from tests.adapters.tiny import HIDDEN_STATES, Case, batch, load, save

SEEN = 1e-3
"""A hundred times the tolerance of the parity test."""
FAINT = 5e-5
"""The two forms of GELU differ by at most 5e-4, an embedding scale and its rounding by one part in ten thousand."""

HEADS = {"EncoderConfig.heads", "EncoderConfig.kv_heads", "EncoderConfig.head_dim"}
WITHOUT_SCORES = "mistral-itself-alone"
"""Each token sees itself alone there, so nothing about scores can be told."""


class Proof:
    """A tiny model, a batch, and what its reference computes for the real tokens."""

    def __init__(self, case: Case, folder: Path) -> None:
        model: Any = save(case, folder)
        loaded = load(folder)
        self.cfg = loaded.cfg
        self.weights: Weights = {
            name: replace(w, scale=1.0, data=w.float32().copy()) for name, w in loaded.weights.items()
        }
        ids, self.mask = batch(case.lengths, loaded.cfg.vocab)
        self.ids = ids.masked_fill(self.mask == 0, model.config.pad_token_id or 0)
        with torch.inference_mode():
            self.expected: Tensor = model(input_ids=self.ids, attention_mask=self.mask).last_hidden_state

    def distance(self, cfg: EncoderConfig, weights: Weights) -> float:
        """Largest difference from the reference; NaN where the mutant computes NaN."""
        ours = run_torch(cfg, HIDDEN_STATES, weights, self.ids, self.mask)
        return float((ours - self.expected)[self.mask.bool()].abs().max())

    def is_seen(self, cfg: EncoderConfig) -> bool:
        """By parity, a position beyond its table included; what lacks the weights to run is not."""
        faint = {cfg.act, self.cfg.act} == {"gelu", "gelu_tanh"} or cfg.embed_scale != self.cfg.embed_scale
        try:
            return not self.distance(cfg, self.weights) <= (FAINT if faint else SEEN)
        except IndexError:
            return True
        except (KeyError, RuntimeError):
            return False

    def is_refused(self, cfg: EncoderConfig) -> bool:
        """By the accounting of weights, before anything runs."""
        needs = signature(cfg, HIDDEN_STATES)
        try:
            check_shapes("mutant", self.weights, needs.needed, needs.optional)
        except WeightMismatch:
            return True
        return False


@cache
def proof_of(name: str) -> Proof:
    with TemporaryDirectory() as folder:
        return Proof(next(case for case in CASES if case.name == name), Path(folder))


def unread(cfg: EncoderConfig) -> set[str]:
    """Facts that decide nothing in this config, whatever they say."""
    found = {"Layer.attn_norm"} if cfg.placement == "post" else set[str]()
    return found if cfg.positions else found | {"EncoderConfig.position_pad"}


def told_by_shapes(cfg: EncoderConfig) -> set[str]:
    """Facts whose other values have no formula to run: only the accounting of weights can refuse them."""
    found = {"EncoderConfig.vocab", "EncoderConfig.dim", "EncoderConfig.ffn", "Layer.moe", "Moe.experts"}
    if cfg.qk_norm == "head" or isinstance(cfg.bias, RelativeBuckets):
        found |= HEADS  # a norm as wide as a head, a table with a column a head
    if not cfg.gated:
        found.add("EncoderConfig.gated")
    if not all(layer.attn_norm for layer in cfg.layers):
        found.add("EncoderConfig.placement")
    return found


every_case = pytest.mark.parametrize("name", [case.name for case in CASES if case.name != WITHOUT_SCORES])


@every_case
def test_every_fact_in_force_is_seen(name: str) -> None:
    proof = proof_of(name)
    assert proof.distance(proof.cfg, proof.weights) < FAINT / 2
    seen: set[str] = set()
    refused: set[str] = set()
    unnoticed = []
    for label, cfg in of_config(proof.cfg):
        other = changed(proof.cfg, cfg) - unread(proof.cfg)
        alone = other if len(other) == 1 else other & HEADS
        if proof.is_seen(cfg):
            seen |= alone
        elif proof.is_refused(cfg):
            refused |= alone
        elif other:
            unnoticed.append(label)
    assert unnoticed == []
    by_shape = told_by_shapes(proof.cfg)
    assert in_force(proof.cfg) - by_shape - seen == set()
    assert in_force(proof.cfg) & by_shape - seen - refused == set()


def test_no_fact_is_left_out() -> None:
    """Each field of an encoder's config is mutated in some family, those that no family switches on included."""
    configs = [proof_of(case.name).cfg for case in CASES]
    assert {fact for cfg in configs for _, other in of_config(cfg) for fact in changed(cfg, other)} == facts()


@every_case
def test_every_tensor_is_in_its_place(name: str) -> None:
    proof = proof_of(name)
    found = {
        label: proof.distance(proof.cfg, weights) for label, weights in of_weights(proof.cfg, proof.weights)
    }
    assert found
    assert {label: distance for label, distance in found.items() if distance <= SEEN} == {}


def test_gated_halves_and_norms_are_among_the_tensors_swapped() -> None:
    labels = {
        case.name: {label for label, _ in of_weights(proof_of(case.name).cfg, proof_of(case.name).weights)}
        for case in CASES
    }
    assert {name for name, found in labels.items() if "gate for up" in found} == {
        case.name for case in CASES if proof_of(case.name).cfg.gated
    }
    assert {"q_norm for k_norm", "attn_norm for attn_inner_norm"} <= labels["jina-bert-code"]
    assert {"q_norm of w", "final_norm of w", "attn_norm for attn_out_norm"} <= labels["gemma3"]
    assert "no bias of v" in labels["qwen2"]


# --- formulas that no field holds


def slopes_without_the_power_above(heads: int) -> Any:
    return np.array([2 ** (-8 * (k + 1) / heads) for k in range(heads)], np.float32)


def buckets_mirrored(buckets: RelativeBuckets, max_length: int) -> Any:
    return BUCKETS(buckets, max_length)[::-1].copy()


def buckets_without_logarithm(buckets: RelativeBuckets, max_length: int) -> Any:
    r = np.arange(-(max_length - 1), max_length)
    half = buckets.buckets // 2
    return np.where(r > 0, half, 0) + np.minimum(np.abs(r), half - 1)


BUCKETS, SLOPES = positions.bucket_of_distance, positions.alibi_slopes
FORMULAS: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("jina-bert", "alibi_slopes", slopes_without_the_power_above),
    ("jina-bert-code", "alibi_slopes", slopes_without_the_power_above),
    ("jina-bert", "alibi_slopes", lambda heads: SLOPES(heads)[::-1].copy()),
    ("mpnet", "bucket_of_distance", buckets_mirrored),
    ("mpnet", "bucket_of_distance", buckets_without_logarithm),
)


@pytest.mark.parametrize(("name", "formula", "other"), FORMULAS)
def test_formulas_of_positions_are_seen(
    name: str, formula: str, other: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = proof_of(name)
    monkeypatch.setattr(positions, formula, other)
    assert proof.distance(proof.cfg, proof.weights) > SEEN
