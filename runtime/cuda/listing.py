"""A launch plan in words: each step with its operands, where they lie in the arena, and the kernel that it launches."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from bei.cuda_plan import Operand, Plan, Product, Schedule, Size, Step

Facts = dict[str, Any]


def listed(plan: Plan) -> Facts:
    """As plain JSON: what the whole plan has, and each schedule's steps in order."""
    return {
        "sm": plan.sm,
        "stream": plan.stream,
        "gelu": plan.gelu,
        "arena_bytes": dict(plan.arena),
        "kernels": {
            name: {
                "threads": function.threads,
                "shared_bytes": function.shared,
                "cubin_bytes": len(function.cubin),
            }
            for name, function in plan.functions.items()
        },
        "schedules": [
            {
                "least_tokens": schedule.least,
                "waves": None if schedule.waves is None else msgspec.to_builtins(schedule.waves),
                "steps": [_step(plan, schedule, step) for step in schedule.steps],
            }
            for schedule in plan.schedules
        ],
    }


def _step(plan: Plan, schedule: Schedule, step: Step) -> Facts:
    if isinstance(step, Product):
        reads = {"x": step.x, "weight": step.weight, "bias": step.bias}
        attrs: Facts = {"epilogue": step.epilogue, "transposed": step.transposed}
        facts: Facts = {"op": "product", "attrs": attrs, "kernel": "cuBLASLt"}
        writes = {"out": step.out}
    else:
        reads = {name: o for name, o in step.operands.items() if name not in step.writes}
        writes = {name: o for name in step.writes if (o := step.operands[name]) is not None}
        facts = {"op": step.op, "attrs": step.attrs, "kernel": step.function, "grid": _grid(step.grid)}
        if step.few:
            facts["few"] = [
                {"most": few.most, "kernel": few.function, "grid": _grid(few.grid)} for few in step.few
            ]
    return facts | {
        "reads": {name: _operand(plan, schedule, o) for name, o in reads.items() if o is not None},
        "writes": {name: _operand(plan, schedule, o) for name, o in writes.items()},
    }


def _operand(plan: Plan, schedule: Schedule, operand: Operand) -> str:
    """ "b3: tokens × 768 f16 at 4608", the place in bytes of the arena a row; columns of a wider matrix as 768…1536."""
    if operand.place == "weight":
        rows: int | str = plan.weights[operand.name].count // operand.width
        return f"{operand.name}: {rows} × {operand.width}"
    last = operand.column + operand.width
    columns = f"{operand.column}…{last} of {operand.stride}" if operand.width < operand.stride else f"{last}"
    said = f"{operand.name}: {operand.rows} × {columns} {operand.dtype}"
    return f"{said} at {schedule.buffers[operand.name].offset}" if operand.place == "arena" else said


def _grid(grid: tuple[Size, ...]) -> list[str]:
    return [_size(size) for size in grid]


def _size(size: Size) -> str:
    """ceil((tokens · 3 + 1) / 64), as short as it can be said."""
    if size.symbol == "one":
        return str(size.of({}))
    said = size.symbol if size.times == 1 else f"{size.symbol} · {size.times}"
    said += f" + {size.plus}" if size.plus else ""
    if size.per == 1:
        return said
    return f"⌈({said}) / {size.per}⌉" if " " in said else f"⌈{said} / {size.per}⌉"


def lines(plan: Plan) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """A title and rows (number, step, reads, writes, kernel and grid) for each schedule."""
    schedules = listed(plan)["schedules"]
    for at, schedule in enumerate(schedules):
        rows = [(str(number), *_words(step)) for number, step in enumerate(schedule["steps"])]
        yield f"{len(rows)} steps, {_batches(schedules, at)}", rows


def _batches(schedules: Sequence[Facts], at: int) -> str:
    """Which batches a schedule is for."""
    least, waves = schedules[at]["least_tokens"], schedules[at]["waves"]
    if len(schedules) == 1:
        return "every batch"
    if waves is not None:
        return f"{least} tokens and more that fill the GPU to {waves['full']:.0%} with {waves['rows']} rows a cluster"
    above = [each["least_tokens"] for each in schedules[at + 1 :] if each["least_tokens"] > least]
    return f"fewer than {above[0]} tokens" if above else f"{least} tokens and more"


def _words(step: Facts) -> tuple[str, ...]:
    attrs = ", ".join(f"{k} {v}" for k, v in step["attrs"].items() if v not in (None, False, "none", "one"))
    parts = [
        [said if said.startswith(f"{name}: ") else f"{name} {said}" for name, said in step[side].items()]
        for side in ("reads", "writes")
    ]
    launched = [step["kernel"] + (f" [{', '.join(step['grid'])}]" if "grid" in step else "")]
    launched += [
        f"to {few['most']} rows: {few['kernel']} [{', '.join(few['grid'])}]" for few in step.get("few", ())
    ]
    return f"{step['op']}\n{attrs}".strip(), *("\n".join(part) for part in parts), "\n".join(launched)
