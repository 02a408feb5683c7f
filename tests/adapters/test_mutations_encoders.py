"""That the parity tests can see: every fact of every encoder family, changed, makes parity fail by more than 1e-3."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bei.adapters.config import DynamicNtk, EncoderConfig, Layer, LinearScaling, RelativeBuckets, Rope
from bei.compiler.lowering.torch_ops import run_torch
from bei.compiler.weights import Weight
from tests.adapters.cases_encoders import ENCODER_CASES
from tests.adapters.tiny import HIDDEN_STATES, Case, batch, load, save

Weights = Mapping[str, Weight]
Mutant = tuple[str, EncoderConfig, Weights]
Change = Callable[[Layer], Layer]
Turn = Callable[[Rope], Rope | None]

FAINT = {"tanh gelu": 5e-5}
"""The two forms of GELU differ by at most 5e-4; the parity test still sees that, at 1e-5."""

BY_NAME = {case.name: case for case in ENCODER_CASES}
SEEN = (
    *(
        "bert",
        "roberta",
        "distilbert",
        "mpnet",
        "modernbert",
        "nomic-bert",
        "nomic-bert-ntk",
        "nomic-bert-moe",
    ),
    *("jina-bert", "jina-bert-code", "gte", "gte-new-reference", "jina-v3"),
)


@dataclass(frozen=True, slots=True)
class Proof:
    """A tiny model, a batch, and what its reference computes for the real tokens."""

    cfg: EncoderConfig
    weights: Weights
    ids: Tensor
    mask: Tensor
    expected: Tensor

    def distance(self, cfg: EncoderConfig, weights: Weights) -> float:
        """Largest difference from the reference; NaN where the mutant computes NaN."""
        ours = run_torch(cfg, HIDDEN_STATES, weights, self.ids, self.mask)
        return float((ours - self.expected)[self.mask.bool()].abs().max())


def prove(case: Case, folder: Any) -> Proof:
    model: Any = save(case, folder)
    loaded = load(folder)
    ids, mask = batch(case.lengths, loaded.cfg.vocab)
    ids = ids.masked_fill(mask == 0, model.config.pad_token_id or 0)
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return Proof(loaded.cfg, loaded.weights, ids, mask, expected)


@pytest.mark.parametrize("name", SEEN)
def test_parity_sees_every_fact(name: str, tmp_path: Any) -> None:
    proof = prove(BY_NAME[name], tmp_path)
    assert proof.distance(proof.cfg, proof.weights) < 1e-5
    mutants = [*of_sizes(proof), *of_layers(proof), *of_weights(proof)]
    far = {label: proof.distance(cfg, weights) for label, cfg, weights in mutants}
    unseen = {label: found for label, found in far.items() if found <= FAINT.get(label, 1e-3)}
    assert not unseen


def of_sizes(proof: Proof) -> Iterator[Mutant]:
    """Facts of the whole encoder."""
    cfg = proof.cfg
    changes: dict[str, dict[str, Any]] = {
        "eps": {"norm_eps": 1e-12 if cfg.norm_eps > 1e-3 else 0.02},
        "scale": {"attn_scale": cfg.attn_scale * 1.25},
        "activation": {"act": "silu" if cfg.act == "gelu" else "gelu"},
        "causal": {"causal": True},
        "soft cap": {"softcap": 2.0},
        "embedding scale": {"embed_scale": 1.5},
        "embedding norm": {"embed_norm": False},
    }
    if cfg.act == "gelu":
        changes["tanh gelu"] = {"act": "gelu_tanh"}
    if cfg.layers[0].attn_norm:
        changes["placement"] = {"placement": "pre"}
    else:
        changes["final norm"] = {"final_norm": False}
    if cfg.positions:
        changes["position offset"] = {"position_pad": 0 if cfg.position_pad is None else cfg.position_pad + 1}
    if cfg.position_pad is not None:
        changes["no position offset"] = {"position_pad": None}
    if cfg.types:
        changes["token types"] = {"types": 0}
    if cfg.qk_norm:
        changes |= {"q/k norm": {"qk_norm": None}, "q/k eps": {"qk_norm_eps": 1e-12}}
        changes["residual"] = {"double_residual": False}
    if not isinstance(cfg.bias, RelativeBuckets):  # whose table has a column a head
        changes["heads"] = _twice_the_heads(cfg)
    for label, bias in _biases(cfg):
        changes[label] = {"bias": bias}
    for label, change in changes.items():
        yield label, replace(cfg, **change), proof.weights


def _twice_the_heads(cfg: EncoderConfig) -> dict[str, Any]:
    heads, size = 2 * cfg.heads, cfg.head_dim // 2
    halved = tuple(replace(layer, rope=layer.rope and replace(layer.rope, dim=size)) for layer in cfg.layers)
    return {"heads": heads, "kv_heads": heads, "head_dim": size, "layers": halved}


def _biases(cfg: EncoderConfig) -> Iterator[tuple[str, Any]]:
    if cfg.bias is None:
        yield "alibi", "alibi"
    else:
        yield "no bias", None
    if isinstance(cfg.bias, RelativeBuckets):
        yield "bucket distance", replace(cfg.bias, max_distance=cfg.bias.max_distance // 2)
        yield "bucket count", replace(cfg.bias, buckets=cfg.bias.buckets - 2)


def of_layers(proof: Proof) -> Iterator[Mutant]:
    """Facts of a layer: window, rotary positions, mixture."""
    layers = proof.cfg.layers
    changes: dict[str, Change] = {"narrow": lambda layer: replace(layer, window=2)}
    if any(layer.window for layer in layers):
        changes |= {
            "window + 1": lambda layer: replace(layer, window=layer.window and layer.window + 1),
            "window − 1": lambda layer: replace(layer, window=layer.window and layer.window - 1),
            "no window": lambda layer: replace(layer, window=None),
            "which layers are global": lambda layer: replace(layers[0], attn_norm=layer.attn_norm),
        }
    if layers[0].rope:
        changes |= {label: partial(_turned, turn) for label, turn in _turns(layers[0].rope).items()}
    if any(layer.moe for layer in layers):
        changes |= {
            "one expert": partial(_mixed, top_k=1),
            "all experts": partial(_mixed, top_k=4),
            "shares": partial(_mixed, renormalize=True),
        }
    for label, change in changes.items():
        yield label, replace(proof.cfg, layers=tuple(map(change, layers))), proof.weights


def _turned(turn: Turn, layer: Layer) -> Layer:
    return replace(layer, rope=turn(layer.rope) if layer.rope else None)


def _mixed(layer: Layer, **facts: Any) -> Layer:
    return replace(layer, moe=replace(layer.moe, **facts) if layer.moe else None)


def _turns(rope: Rope) -> dict[str, Turn]:
    turns: dict[str, Turn] = {
        "theta": lambda rope: replace(rope, theta=rope.theta * 1.2),
        "interleaved": lambda rope: replace(rope, interleaved=True),
        "part of a head": lambda rope: replace(rope, dim=rope.dim // 2),
        "no rotation": lambda rope: None,
    }
    if rope.scaling:
        turns["no scaling"] = lambda rope: replace(rope, scaling=None)
    if isinstance(rope.scaling, LinearScaling):
        more = LinearScaling(factor=rope.scaling.factor * 1.1)
        turns["factor"] = lambda rope: replace(rope, scaling=more)
    if isinstance(rope.scaling, DynamicNtk):
        steeper = replace(rope.scaling, factor=rope.scaling.factor + 1)
        later = replace(rope.scaling, trained_positions=rope.scaling.trained_positions + 1)
        turns["factor"] = lambda rope: replace(rope, scaling=steeper)
        turns["trained length"] = lambda rope: replace(rope, scaling=later)
    return turns


def of_weights(proof: Proof) -> Iterator[Mutant]:
    """Halves and thirds of fused weights in another order."""
    pairs = [("q", "k"), ("k", "v")] + ([("gate", "up")] if proof.cfg.gated else [])
    for a, b in pairs:
        names = {f"layers.{i}.{x}.{p}" for i in range(9) for x in (a, b) for p in ("weight", "bias")}
        other = {f".{a}.": f".{b}.", f".{b}.": f".{a}."}
        swapped = {
            name: proof.weights[name.replace(mark, other[mark])]
            for name in names & set(proof.weights)
            for mark in other
            if mark in name
        }
        yield f"{a} for {b}", proof.cfg, {**proof.weights, **swapped}
