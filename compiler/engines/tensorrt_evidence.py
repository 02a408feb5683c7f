"""The evidence a TensorRT build leaves in the manifest, as plain JSON.

fused_attention, attention_layers, unfused_attention   fused kernels, attentions in the graph, names of the lost ones
kernels, kernels_per_layer        launches per batch; launches from each fused attention to the next
gemm_accumulation                 weight → "fp32" | "library's choice" as the plan states it, or "not readable"
gemm_weights                      weight → type it is read in by its kernel, where the builder lists it
attention_accumulation            attention → [of q·kᵀ, of weights·v]
weight_bytes                      by dtype, as the kernels read them
plan_bytes                        size of the plan
warnings                          the builder's
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bei.compiler.engines.graph_facts import GraphFacts
from bei.compiler.engines.tensorrt_log import (
    NOT_KERNELS,
    BuildLog,
    Kernel,
    first_profile,
    fused_nodes,
    kernels_per_layer,
    weight_elements,
)
from bei.compiler.engines.tensorrt_plan import PlanFacts, read_plan

_BYTES = {"Float": 4, "Half": 2, "BFloat16": 2, "Int32": 4, "Int64": 8, "Bool": 1, "Int8": 1, "UInt8": 1}


def evidence(log: BuildLog, plan: Path, graph: GraphFacts, profiles: int) -> dict[str, Any]:
    """What was built, from the builder's log and the plan."""
    kernels = first_profile(log.kernels, profiles)
    facts = read_plan(plan)
    fused = fused_nodes(log.kernels, profiles)
    return {
        "attention_layers": len(graph.attentions),
        "fused_attention": sum(kernel.fused_attention for kernel in kernels),
        "unfused_attention": [place for node, place in graph.attentions.items() if node not in fused],
        "kernels": sum(kernel.kind not in NOT_KERNELS for kernel in kernels),
        "kernels_per_layer": kernels_per_layer(kernels),
        "gemm_accumulation": {
            weight: facts.gemms.get(node, "not readable")
            for node, weights in graph.products.items()
            for weight in weights
        },
        "gemm_weights": _gemm_weights(kernels, graph),
        "attention_accumulation": _attention_accumulation(kernels, facts, graph),
        "weight_bytes": {dtype: n * _BYTES.get(dtype, 1) for dtype, n in weight_elements(kernels).items()},
        "plan_bytes": plan.stat().st_size,
        "warnings": list(log.warnings),
    }


def _gemm_weights(kernels: Sequence[Kernel], graph: GraphFacts) -> dict[str, str]:
    """The type of the largest constant of the kernel that multiplies with a weight."""
    found = {}
    for kernel in kernels:
        if kernel.constants:
            largest = max(kernel.constants, key=lambda constant: constant.elements)
            weights = [weight for node in kernel.nodes for weight in graph.products.get(node, ())]
            found.update(dict.fromkeys(weights, largest.dtype))
    return found


def _attention_accumulation(
    kernels: Sequence[Kernel], facts: PlanFacts, graph: GraphFacts
) -> dict[str, list[str]]:
    """Per attention; an attention whose SMs differ lists the weakest."""
    found: dict[str, list[str]] = {}
    for kernel in kernels:
        if kernel.fused_attention and kernel.function in facts.attentions:
            weakest = min(facts.attentions[kernel.function], key=lambda pair: pair.count("fp32"))
            found.update({graph.attentions.get(node, node): list(weakest) for node in kernel.nodes})
    return found
