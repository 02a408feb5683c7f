"""What a build showed, layer by layer and in sentences, from the evidence in a manifest."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bei.manifest import Profile

OTHER = "other"
"""The row of products that are in no layer: heads, projections."""

PRECISIONS = {"Float": "fp32", "Half": "fp16", "BFloat16": "bf16"}
"""TensorRT's names of the types that weights have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gemm:
    """``accumulation`` "fp32", "fp16", "library's choice" or "not readable"; ``weights`` the type they are read in, None
    where the builder did not list them."""

    accumulation: str
    weights: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerFacts:
    """One layer. ``kernels`` from its attention to the next layer's, None for the last. ``attention``: accumulation of
    q·kᵀ and of weights·v; None where it is not one fused kernel, or not readable. ``gemms`` by their names in the layer.
    """

    name: str
    kernels: int | None = None
    fused: bool = True
    attention: tuple[str, str] | None = None
    gemms: Mapping[str, Gemm] = field(default_factory=dict)


def layers(evidence: Mapping[str, Any]) -> list[LayerFacts]:
    """A row for each layer, and one for what is in none. Empty for engines without such evidence."""
    gemms: dict[str, dict[str, Gemm]] = {}
    types = evidence.get("gemm_weights", {})
    for weight, accumulation in evidence.get("gemm_accumulation", {}).items():
        layer, name = _place(weight)
        kind = types.get(weight)
        gemms.setdefault(layer, {})[name] = Gemm(
            accumulation=accumulation, weights=None if kind is None else PRECISIONS.get(kind, kind)
        )
    attention = {_place(name)[0]: pair for name, pair in evidence.get("attention_accumulation", {}).items()}
    unfused = {_place(name)[0] for name in evidence.get("unfused_attention", ())}
    kernels = list(evidence.get("kernels_per_layer", ()))
    names = sorted({*gemms, *attention, *unfused}, key=_order)
    return [
        LayerFacts(
            name=name,
            kernels=kernels[i] if i < len(kernels) and name != OTHER else None,
            fused=name not in unfused,
            attention=(str(attention[name][0]), str(attention[name][1])) if name in attention else None,
            gemms=gemms.get(name, {}),
        )
        for i, name in enumerate(names)
    ]


def _place(weight: str) -> tuple[str, str]:
    """ "layers.3.up" is ("3", "up")."""
    found = re.fullmatch(r"layers\.(\d+)\.(.+)", weight)
    return (found[1], found[2]) if found else (OTHER, weight)


def _order(name: str) -> tuple[bool, int]:
    return (name == OTHER, 0 if name == OTHER else int(name))


def sentences(evidence: Mapping[str, Any], profiles: Sequence[Profile] = ()) -> Iterator[str]:
    """A TensorRT or CUDA engine's evidence in a few lines; nothing for other engines."""
    if "schedules" in evidence:
        yield from _schedules(evidence)
    if "attention_layers" not in evidence:
        return
    said = f"{evidence['fused_attention']} of {evidence['attention_layers']} attentions fused"
    per_layer = _most_common(evidence.get("kernels_per_layer", ()))
    if per_layer is not None:
        said += f", {per_layer} kernels a layer"
    yield f"{said}, {evidence['kernels']} kernels in all"
    yield f"accumulation: {_accumulation(evidence)}"
    weights = ", ".join(
        f"{PRECISIONS.get(kind, kind)} {size(count)}"
        for kind, count in evidence.get("weight_bytes", {}).items()
    )
    yield f"weights as read: {weights}; plan {size(evidence['plan_bytes'])}"
    reserved = [
        f"{size(p.activation_bytes)} for {p.max_batch} × {p.max_length}"
        for p in profiles
        if p.activation_bytes is not None
    ]
    if reserved:
        yield f"activations: {', '.join(reserved)}"
    yield from evidence.get("portability_costs", ())


def _schedules(evidence: Mapping[str, Any]) -> Iterator[str]:
    """What a CUDA engine launches, by the tokens of a batch."""
    for schedule in evidence["schedules"]:
        counts = {**schedule["launches"], "product by cuBLASLt": schedule["products"]}
        launched = ", ".join(f"{count} {op}" for op, count in counts.items() if count)
        where = " that fill the GPU with whole rows" if schedule["whole_rows"] else ""
        yield f"from {schedule['least_tokens']} tokens{where}: {sum(counts.values())} launches ({launched})"
    arena = size(evidence["arena_bytes_a_token"])
    yield f"stream {evidence['stream']}, gelu {evidence['gelu']}; arena {arena} a token, cubins {size(evidence['cubin_bytes'])}"


def _accumulation(evidence: Mapping[str, Any]) -> str:
    gemms = Counter(evidence.get("gemm_accumulation", {}).values())
    parts = [f"{count} products {kind}" for kind, count in gemms.most_common()]
    pairs = Counter(
        " and ".join(dict.fromkeys(p)) for p in evidence.get("attention_accumulation", {}).values()
    )
    parts += [f"{count} attentions {kind}" for kind, count in pairs.most_common()]
    return ", ".join(parts) or "not readable"


def _most_common(counts: Sequence[int]) -> int | None:
    found = Counter(counts).most_common(1)
    return found[0][0] if found else None


def size(count: int) -> str:
    """Bytes in KiB, MiB or GiB."""
    if count >= 1 << 30:
        return f"{count / (1 << 30):.2f} GiB"
    return f"{count / (1 << 20):.1f} MiB" if count >= 1 << 20 else f"{count / 1024:.0f} KiB"
