"""Every way to get one fact of an encoder wrong: each field of its config, and which stored tensor is which.

`of_config` tries values for every field, possible or not; `changed` reads from the outcome which facts a mutant
differs in, so that a field nobody mutates cannot hide behind a label.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any

from bei.adapters.config import (
    Act,
    DynamicNtk,
    EncoderConfig,
    Layer,
    LinearScaling,
    Llama3Scaling,
    Moe,
    RelativeBuckets,
    Rope,
)
from bei.compiler.weights import Weight

Weights = Mapping[str, Weight]
KINDS = (EncoderConfig, Layer, Rope, LinearScaling, Llama3Scaling, DynamicNtk, RelativeBuckets, Moe)
ACTS: tuple[Act, ...] = ("gelu", "gelu_tanh", "silu", "relu")


def facts() -> set[str]:
    """All there are, as Class.field; a config's layers are told by their parts."""
    return {f"{kind.__name__}.{field.name}" for kind in KINDS for field in fields(kind)} - {
        "EncoderConfig.layers"
    }


def changed(one: Any, other: Any) -> set[str]:
    """The facts in which two configs differ."""
    found: set[str] = set()
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, tuple):
            found |= {fact for x, y in zip(a, b, strict=True) for fact in changed(x, y)}
        elif is_dataclass(a) and type(a) is type(b):
            found |= changed(a, b)
        elif a != b:
            found.add(f"{type(one).__name__}.{field.name}")
    return found


def in_force(value: Any) -> set[str]:
    """The facts that a config states: no default, or not the default."""
    found: set[str] = set()
    for field in fields(value):
        held = getattr(value, field.name)
        if isinstance(held, tuple):
            found |= {fact for part in held for fact in in_force(part)}
            continue
        if field.default is MISSING or held != field.default:
            found.add(f"{type(value).__name__}.{field.name}")
        if is_dataclass(held):
            found |= in_force(held)
    return found


def of_config(cfg: EncoderConfig) -> Iterator[tuple[str, EncoderConfig]]:
    """A label, and the config with something else in it."""
    for name, values in _of_encoder(cfg).items():
        for value in values:
            yield f"{name} {value}", replace(cfg, **{name: value})
    yield "twice the heads", _twice_the_heads(cfg)
    if isinstance(cfg.bias, RelativeBuckets):
        for change in ({"buckets": cfg.bias.buckets - 2}, {"max_distance": cfg.bias.max_distance // 2}):
            yield f"buckets {change}", replace(cfg, bias=replace(cfg.bias, **change))
    for old in dict.fromkeys(cfg.layers):
        for label, new in _of_layer(old):
            yield label, replace(cfg, layers=tuple(new if layer == old else layer for layer in cfg.layers))
    for rope in dict.fromkeys(layer.rope for layer in cfg.layers if layer.rope):
        for turned in _of_rope(rope):
            yield f"{rope} as {turned}", _with_rope(cfg, {rope: turned})
    ropes = [*dict.fromkeys(layer.rope for layer in cfg.layers if layer.rope)]
    if len(ropes) == 2:
        yield "thetas swapped", _with_rope(cfg, dict(zip(ropes, reversed(ropes), strict=True)))
    if len(set(cfg.layers)) > 1:
        yield "layers in another order", replace(cfg, layers=(*cfg.layers[1:], cfg.layers[0]))


def _of_encoder(cfg: EncoderConfig) -> dict[str, tuple[Any, ...]]:
    """Field → other values."""
    pad = cfg.position_pad
    return {
        "vocab": (cfg.vocab + 1,),
        "dim": (2 * cfg.dim,),
        "kv_heads": (2 * cfg.kv_heads,),
        "head_dim": (cfg.head_dim // 2,),
        "ffn": (cfg.ffn + 8,),
        "act": tuple(act for act in ACTS if act != cfg.act),
        "gated": (not cfg.gated,),
        "norm": ("rms" if cfg.norm == "layer" else "layer",),
        "norm_eps": (0.03 if cfg.norm_eps < 1e-3 else 1.5 * cfg.norm_eps,),
        "placement": tuple({"post", "pre", "sandwich"} - {cfg.placement}),
        "attn_scale": (1.1 * cfg.attn_scale,),
        "positions": (0, cfg.positions + 2),
        "position_pad": (0,) if pad is None else (None, pad + 1),
        "types": (0, cfg.types + 1),
        "embed_scale": (1.5,) if cfg.embed_scale == 1 else (1.0, float(round(8 * cfg.embed_scale)) / 8),
        "embed_norm": (not cfg.embed_norm,),
        "final_norm": (not cfg.final_norm,),
        "causal": (not cfg.causal,),
        "softcap": (1.0,),
        "qk_norm": ("head", "full") if cfg.qk_norm is None else (None,),
        "qk_norm_eps": (1.5 * cfg.qk_norm_eps,),
        "bias": ("alibi",) if cfg.bias is None else (None,),
        "double_residual": (not cfg.double_residual,),
    }


def _twice_the_heads(cfg: EncoderConfig) -> EncoderConfig:
    """Same projections, cut into halves of the heads."""
    size = cfg.head_dim // 2
    layers = tuple(replace(layer, rope=layer.rope and replace(layer.rope, dim=size)) for layer in cfg.layers)
    return replace(cfg, heads=2 * cfg.heads, kv_heads=2 * cfg.kv_heads, head_dim=size, layers=layers)


def _of_layer(layer: Layer) -> Iterator[tuple[str, Layer]]:
    w = layer.window
    for window in (2,) if w is None else (w + 1, max(0, w - 1), None):
        yield f"window {w} as {window}", replace(layer, window=window)
    yield "no rotation", replace(layer, rope=None)
    yield f"attn_norm {not layer.attn_norm}", replace(layer, attn_norm=not layer.attn_norm)
    if layer.moe:
        yield "no experts", replace(layer, moe=None)
        facts = layer.moe
        for change in (
            {"experts": facts.experts + 1},
            {"top_k": 1},
            {"top_k": facts.experts},
            {"renormalize": not facts.renormalize},
        ):
            yield f"experts {change}", replace(layer, moe=replace(facts, **change))


def _of_rope(rope: Rope) -> Iterator[Rope]:
    yield replace(rope, theta=1.2 * rope.theta)
    yield replace(rope, dim=rope.dim // 2)
    yield replace(rope, interleaved=not rope.interleaved)
    scaling = rope.scaling
    if scaling is None:
        return
    yield replace(rope, scaling=None)
    for field in fields(scaling):
        value = getattr(scaling, field.name)
        grown = value + 1 if isinstance(scaling, DynamicNtk) else type(value)(2 * value)
        yield replace(rope, scaling=replace(scaling, **{field.name: grown}))


def _with_rope(cfg: EncoderConfig, new: Mapping[Rope, Rope]) -> EncoderConfig:
    return replace(
        cfg,
        layers=tuple(
            replace(layer, rope=new.get(layer.rope, layer.rope)) if layer.rope else layer
            for layer in cfg.layers
        ),
    )


SWAPS = (
    *(("q", "k"), ("k", "v"), ("gate", "up"), ("q_norm", "k_norm"), ("attn_norm", "ffn_norm")),
    *(("attn_norm", "attn_out_norm"), ("ffn_norm", "ffn_out_norm"), ("attn_norm", "attn_inner_norm")),
)
"""Parts of a layer that lie in one stored tensor, or beside each other under names that are easy to confuse."""


def of_weights(cfg: EncoderConfig, weights: Weights) -> Iterator[tuple[str, Weights]]:
    """Two parts taken for each other, biases left out, Gemma's norms without their 1.

    A bias of k without rotation changes every score of a query alike, which softmax does not see.
    """
    for a, b in SWAPS:
        swapped = _swapped(weights, a, b)
        if swapped != weights:
            yield f"{a} for {b}", swapped
    kinds = {name.split(".")[-2] for name in weights if name.endswith(".bias")}
    turned = any(layer.rope for layer in cfg.layers)
    for kind in sorted(kinds if turned else kinds - {"k", "k_norm"}):
        yield f"no bias of {kind}", {n: w for n, w in weights.items() if not n.endswith(f"{kind}.bias")}
    if cfg.placement == "sandwich":
        for kind in sorted({name.split(".")[-2] for name in weights if name.endswith("norm.weight")}):
            plain = {n: _less_one(w) for n, w in weights.items() if n.endswith(f"{kind}.weight")}
            yield f"{kind} of w", {**weights, **plain}


def _swapped(weights: Weights, a: str, b: str) -> Weights:
    """In every layer that has both, with the same shape."""
    found = dict(weights)
    for name, weight in weights.items():
        layer, part, leaf = [*name.rsplit(".", 2)][-3:] if name.startswith("layers.") else ("", "", "")
        other = weights.get(f"{layer}.{b}.{leaf}")
        if part == a and other is not None and other.shape == weight.shape:
            found |= {name: other, f"{layer}.{b}.{leaf}": weight}
    return found


def _less_one(weight: Weight) -> Weight:
    assert weight.data is not None
    return replace(weight, data=weight.data - 1)
