"""What a launch plan has to do, counted: floating-point operations, and bytes if every operand crossed memory once."""

from collections.abc import Sequence

from bei.cuda_plan import ITEMSIZE, Operand, Plan, Product, Step


def step_flops(step: Step, lengths: Sequence[int]) -> float:
    """Of products, with or without an activation, and of attention; the rest is left out."""
    rows = len(lengths) if _rows(step) == "rows" else sum(lengths)
    if isinstance(step, Product):
        return 2.0 * rows * step.x.width * step.out.width
    if step.op in ("linear", "linear_norm"):
        x, out = step.operands["x"], step.operands["out"]
        assert x and out
        halves = 2 if step.attrs.get("gated") else 1
        return 2.0 * rows * x.width * out.width * halves
    if step.op == "attention":
        window: int | None = step.attrs["window"]
        spans = sum(n * (n if window is None else min(n, 2 * window + 1)) for n in lengths)
        width: int = step.attrs["heads"] * step.attrs["head_dim"]
        return 4.0 * spans * width / (2 if step.attrs["causal"] else 1)
    return 0.0


def plan_flops(plan: Plan, lengths: Sequence[int]) -> float:
    """Of all steps, which compute the same in every schedule."""
    return sum(step_flops(step, lengths) for step in plan.schedules[0].steps)


def step_bytes(plan: Plan, step: Step, lengths: Sequence[int]) -> int:
    """Every operand once: a text's or token's rows of a matrix, a weight whole."""
    if isinstance(step, Product):
        operands = [step.x, step.weight, step.bias, step.out]
    else:
        operands = list(step.operands.values())
    return sum(_nbytes(plan, operand, lengths) for operand in operands if operand is not None)


def _nbytes(plan: Plan, operand: Operand, lengths: Sequence[int]) -> int:
    size = ITEMSIZE[operand.dtype]
    if operand.place == "weight":
        return plan.weights[operand.name].count * size
    rows = {"tokens": sum(lengths), "rows": len(lengths)}.get(operand.rows, 0)
    return rows * operand.width * size


def _rows(step: Step) -> str:
    if isinstance(step, Product):
        return step.out.rows
    out = step.operands.get("out")
    return out.rows if out is not None else "tokens"
