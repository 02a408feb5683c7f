"""A plan as a table for people."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Column, Table

from bei.cards import CPU
from bei.runtime.capacity.plan import Option, Plan

ASSUMPTIONS = (
    "Each row is one replica at its share of the load, in simulated time, by the scheduler that serves: requests arrive "
    "at random and are spread at random over the replicas (a balancer that looks at the load does no worse)."
)

CPU_CAVEAT = (
    "Checked on one core that did nothing else: a server's throughput, p50 and p99 within 7% of the simulated at 30, 50 and 70% of "
    "saturation; in an earlier run p99 at 70% was off by 16%. On two cores, which calls share, its p99 was 1.4 times the simulated and saturation 0.86 of it. "
    "Leave room, and try it with your load."
)
"""From benchmarks/results/capacity.md and capacity_shared.md."""


def show(plan: Plan, console: Console) -> None:
    """The question, a table of devices, and for each what bounds it and what to do."""
    console.print(
        f"{plan.model}: {plan.rate:,.6g} requests/s of {plan.texts_per_request} texts, {plan.lengths} tokens, "
        f"p99 within {plan.p99_ms:g} ms",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_table(plan))
    for line in _notes(plan):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _table(plan: Plan) -> Table:
    """One column a device."""
    columns = [dict(_figures(one)) for one in plan.options]
    table = Table("", *(Column(one.device, justify="right") for one in plan.options))
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *(column.get(name, "") for column in columns))
    return table


def _figures(one: Option) -> Iterator[tuple[str, str]]:
    yield "engine", one.target
    if one.replicas is None:
        yield "replicas", "none will do"
        return
    yield "replicas", f"{one.replicas - one.spare:,}{f' + {one.spare} spare' if one.spare else ''}"
    yield "--max-batch-tokens", f"{one.max_batch_tokens:,}"
    yield from ((f"{part} busy", f"{share:.0%}") for part, share in one.busy.items())
    yield "p50, p99 ms", f"{one.p50_ms:,.4g}, {one.p99_ms:,.4g}"
    yield "requests/s each", f"{one.requests_per_second:,.4g}"
    yield "tokens in a batch", f"{one.batch_tokens:,.0f}"
    if one.cost_hour is None:
        yield "$ an hour", "no price"
    else:
        yield "$ an hour", f"{one.cost_hour:,.2f}{'*' if one.price_assumed else ''}"
        yield "$ a million texts", f"{one.cost_million_texts:,.4f}"


def _notes(plan: Plan) -> Iterator[str]:
    for one in plan.options:
        yield f"\n{one.device}, {one.target}: bound by {'the promise' if one.bound == 'latency' else f'the {one.bound}'}"
        yield from (f"  {line}" for line in one.advice)
        yield f"  Times of the engine: {one.curve}. Of tokenizer and server: {one.host}."
    yield f"\n{ASSUMPTIONS}"
    if any(one.card == CPU for one in plan.options):
        yield CPU_CAVEAT
    if any(one.spare for one in plan.options):
        yield "Figures are those of the replicas left when the spare ones are lost; the cost is that of all."
    if plan.cut:
        yield f"{plan.cut:.1%} of the texts are longer than the model takes, and are cut."
    if any(one.cost_hour is not None and one.price_assumed for one in plan.options):
        yield "* An assumed price. Say what you pay with --price NAME=DOLLARS."
    if any(one.cost_hour is None and one.replicas for one in plan.options):
        yield "Where no price is known: --price NAME=DOLLARS."
