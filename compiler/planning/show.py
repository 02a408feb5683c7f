"""A build's memory as a table for people and as plain JSON."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from rich.console import Console, Group
from rich.filesize import decimal
from rich.table import Column, Table
from rich.text import Text

from bei.cards import CARDS
from bei.compiler.planning.memory import RESERVE, MemoryPlan
from bei.compiler.target import Target
from bei.manifest import Manifest

SOURCES = {
    "formula": "activation by a formula fitted to TensorRT-RTX; the build compares it with what the builder reports",
    "launch plan": "activation as the launch plan lays it out",
}


def as_json(plans: Sequence[MemoryPlan], unplanned: Sequence[Target]) -> dict[str, Any]:
    """Bytes, by target."""
    return {
        "engines": [
            {
                "target": plan.target,
                "weights_bytes": plan.weights,
                "activation_bytes": plan.activation,
                "activation_source": plan.source,
                "profiles": msgspec.to_builtins(plan.profiles),
                "io_bytes": plan.io,
                "reserve_bytes": RESERVE,
                "device_bytes": plan.device,
                "host_bytes": plan.host,
                "plan_bytes": plan.disk,
                "scratch_bytes": plan.scratch,
                "max_batch_tokens_on": dict(plan.budgets),
                "costs": list(plan.costs),
            }
            for plan in plans
        ],
        "not_planned": [target.name for target in unplanned],
    }


def surprises(manifest: Manifest) -> Iterator[str]:
    """Engines whose builder wants another amount of memory than was planned."""
    for engine in manifest.engines:
        memory = engine.evidence.get("memory", {})
        if memory.get("within") is False:
            reported = max(size or 0 for size in memory["reported_activation_bytes"])
            planned = max(memory["planned_activation_bytes"])
            yield (
                f"{engine.target}: the builder reserves {decimal(reported)} for activations, and {decimal(planned)} "
                "were planned. Count with the builder's number."
            )


def show(plans: Sequence[MemoryPlan], unplanned: Sequence[Target], console: Console) -> None:
    """Print one block an engine."""
    for plan in plans:
        console.print(Group(Text(plan.target, style="bold"), _memory(plan), _profiles(plan), _cards(plan)))
        for cost in plan.costs:
            console.print(cost, highlight=False, markup=False)
        console.print(f"{SOURCES[plan.source]}\n", style="dim", highlight=False)
    for target in unplanned:
        console.print(f"{target.name}: maps the checkpoint's own weights; nothing to plan", highlight=False)


def _memory(plan: MemoryPlan) -> Table:
    table = Table("memory", Column("bytes", justify="right"))
    table.add_row("device: weights", decimal(plan.weights))
    table.add_row("device: activation", decimal(plan.activation))
    table.add_row("device: inputs and outputs", decimal(plan.io))
    table.add_row("device: context, library, kernels (assumed)", decimal(RESERVE))
    table.add_row("device: peak", decimal(plan.device), style="bold")
    table.add_row("host: peak of the build, about", decimal(plan.host))
    table.add_row("disk: plan", decimal(plan.disk))
    table.add_row("disk: FP16 weights, while it is built", decimal(plan.scratch))
    return table


def _profiles(plan: MemoryPlan) -> Table:
    table = Table("texts a call", "of at most tokens", "tokens a call", "activation")
    for profile in plan.profiles:
        sizes = (profile.max_batch, profile.max_length, profile.max_tokens)
        table.add_row(*(str(size) for size in sizes), decimal(profile.activation_bytes or 0))
    return table


def _budget(plan: MemoryPlan, budget: int | None) -> str:
    if budget is None:
        return "none: one longest text is too much"
    return f"{budget} (all that --max-batch holds)" if budget == plan.largest_call else str(budget)


def _cards(plan: MemoryPlan) -> Table:
    table = Table("card", "memory", "largest --max-batch-tokens", "this build")
    for card in CARDS:
        if card.name not in plan.budgets:
            continue
        budget = plan.budgets[card.name]
        fits = "fits" if plan.device <= card.memory else "does not fit"
        table.add_row(card.name, decimal(card.memory), _budget(plan, budget), fits)
    return table
