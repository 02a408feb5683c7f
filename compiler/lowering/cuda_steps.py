"""What a step of a launch plan reads and writes, and in which form."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bei.cuda_plan import ITEMSIZE, Launch, Operand, Product, Step
from bei.kernels.launch import Form, Forms

if TYPE_CHECKING:
    from bei.kernels.activate import Act

ALIGNMENT = 16
"""Bytes; offsets a token are multiples of it, so that every access of a kernel can be 16 bytes wide."""


def reads(step: Step) -> list[Operand]:
    """What a step reads."""
    if isinstance(step, Product):
        return [o for o in (step.x, step.weight, step.bias) if o is not None]
    return [o for name, o in step.operands.items() if o is not None and name not in step.writes]


def writes(step: Step) -> list[Operand]:
    """What a step writes."""
    if isinstance(step, Product):
        return [step.out]
    return [o for name in step.writes if (o := step.operands[name]) is not None]


def linear_of(product: Product, out: Operand, act: "Act", *, gated: bool) -> Launch:
    """The launch of `bei.kernels.linear` that computes a product with what follows it."""
    operands = {
        "x": product.x,
        "weight": product.weight,
        "bias": product.bias,
        "residual": None,
        "order": None,
        "groups": None,
        "out": out,
    }
    attrs = {"act": act, "gated": gated, "transposed": product.transposed, "rows": product.x.rows}
    return Launch(op="linear", attrs=attrs, operands=operands, writes=("out",))


def forms_of(operands: Mapping[str, Operand | None]) -> Forms:
    """What a kernel's module is told of its operands."""
    return {name: _form(operand) for name, operand in operands.items()}


def _form(operand: Operand | None) -> Form | None:
    if operand is None:
        return None
    aligned = operand.column * ITEMSIZE[operand.dtype] % ALIGNMENT == 0
    return Form(dtype=operand.dtype, width=operand.width, stride=operand.stride, aligned=aligned)
