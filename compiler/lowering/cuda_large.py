"""Large batches on Hopper: products by our own kernel, and residual sums inside them where the sum is stored.

`bei.kernels.hopper` is faster than cuBLASLt from `LEAST` tokens on (benchmarks/results/h100/cuda_kernels.md). A sum that goes
on as the residual stream is cheaper inside the product, where it is read and written once, than in `add_norm`, which would
read both addends and write it beside the norm; where only the norm goes on (post-norm), `add_norm` is cheaper.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

from bei.compiler.lowering.cuda_steps import forms_of, linear_of, reads, writes
from bei.cuda_plan import Epilogue, Launch, Operand, Product, Step

if TYPE_CHECKING:
    from bei.kernels.activate import Act

LEAST = 4096
"""Tokens from which the steps made here are used."""
TURNING = ("linear", "linear_norm")
"""Kernels that can begin at either end; attention begins with the longest texts."""
Batches = Literal["all", "large", "rows"]
"""Which batches a program is for: all, those of `LEAST` tokens and more, or those that also fill the GPU with whole rows."""
ACTS: "dict[Epilogue, Act]" = {"none": "identity", "relu": "relu", "gelu_tanh": "gelu_tanh"}


def own_products(steps: Sequence[Step], sm: int) -> list[Step]:
    """The steps with every product that `bei.kernels.hopper` can compute computed by it."""
    return [_own(step, sm) if isinstance(step, Product) else step for step in steps]


def sums_inside(steps: Sequence[Step], sm: int) -> list[Step]:
    """The steps with every residual sum that is stored inside the product that adds to it."""
    summed = list(steps)
    for at, step in enumerate(summed):
        if isinstance(step, Launch) and step.op == "add_norm":
            _sum_inside(summed, at, sm)
    return summed


def _own(step: Product, sm: int) -> Step:
    own = linear_of(step, step.out, ACTS[step.epilogue], gated=False)
    fits = step.x.rows == "tokens" and _fits(own.operands, sm, transposed=step.transposed)
    return own if fits else step


def _fits(operands: Mapping[str, Operand | None], sm: int, *, transposed: bool) -> bool:
    from bei.kernels import hopper  # needs Triton, which only what builds CUDA engines has

    return hopper.fits(forms_of(operands), sm=sm, transposed=transposed)


def _sum_inside(steps: list[Step], at: int, sm: int) -> None:
    """Where the `add_norm` at ``at`` stores its sum and one addend is a product that nothing else reads, let the product make
    the sum."""
    norm = steps[at]
    assert isinstance(norm, Launch)
    x, a, total = (norm.operands[name] for name in ("x", "a", "total"))
    if x is None or a is None or total is None or norm.attrs["factor"] != 1.0:
        return
    for addend, other in ((a, x), (x, a)):
        maker = sole_maker(steps, addend, at, ("linear",))
        product = None if maker is None else steps[maker]
        if maker is None or not isinstance(product, Launch) or made(steps, other) >= maker:
            continue
        operands = {**product.operands, "residual": other, "out": total}
        if product.operands["residual"] is None and _fits(operands, sm, transposed=False):
            steps[maker] = msgspec.structs.replace(product, operands=operands)
            live = tuple(name for name in norm.writes if name != "total")
            summed = {**norm.operands, "x": total, "a": None, "total": None}
            steps[at] = msgspec.structs.replace(norm, operands=summed, writes=live)
            return


def sole_maker(steps: Sequence[Step], x: Operand, at: int, ops: Collection[str]) -> int | None:
    """The launch of one of ``ops`` that makes x, all of it and for the step at ``at`` alone."""
    readers = [n for n, step in enumerate(steps) if any(o.name == x.name for o in reads(step))]
    maker = made(steps, x)
    step = steps[maker] if maker >= 0 else None
    own = isinstance(step, Launch) and step.op in ops and step.operands["out"] == x
    return maker if own and readers == [at] else None


def made(steps: Sequence[Step], x: Operand) -> int:
    """Where x is written last; -1 where it is there from the beginning."""
    return max((n for n, step in enumerate(steps) if any(o.name == x.name for o in writes(step))), default=-1)


def turning(steps: Sequence[Step]) -> list[Step]:
    """Products that begin with the last tokens where the step before has ended there, or where the next one, which does not turn,
    begins with the first: what was written last is in the cache still."""
    turned, backwards = list(steps), True
    for at, step in enumerate(steps):
        ahead = at + 1 < len(steps) and not _turns(steps[at + 1])
        backwards = _turns(step) and (ahead or not backwards)
        if backwards and isinstance(step, Launch):
            turned[at] = msgspec.structs.replace(step, attrs={**step.attrs, "backwards": True})
    return turned


def _turns(step: Step) -> bool:
    return isinstance(step, Launch) and step.op in TURNING
