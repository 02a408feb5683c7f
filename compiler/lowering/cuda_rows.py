"""Batches that fill the GPU with whole rows: norms inside the products before them, where a cluster of blocks holds whole rows
of a product (`bei.kernels.linear_norm`).

The product and its sum then never cross memory apart from the norm. A cluster computes 128 rows at a time, so that a batch
takes as long as one that is rounded up to 128 rows for all clusters: what is not near to that is better served by tiles that
are a quarter as large (`bei.compiler.lowering.cuda_large`).
"""

from collections.abc import Sequence

from bei.compiler.lowering.cuda_large import sole_maker
from bei.compiler.lowering.cuda_steps import forms_of
from bei.cuda_plan import Launch, Operand, Step, Waves

FULL = 0.75
"""Of the rows of a batch that is rounded up, how many must be its own. Measured on an H100 (decision 7): from three quarters on these
steps are as fast as those for other large batches or faster, by up to 8 %; at 0.6 they can be slower by as much."""


def norms_inside(steps: Sequence[Step], sm: int) -> list[Step]:
    """The steps of a large batch with every norm that can be inside the product before it."""
    fused = list(steps)
    for norm in [step for step in steps if isinstance(step, Launch) and step.op == "add_norm"]:
        _fuse(fused, fused.index(norm), sm)
    return fused


def waves_of(steps: Sequence[Step]) -> Waves | None:
    """How these steps divide the tokens; None where no norm is inside a product."""
    from bei.kernels import hopper

    functions = (step.function for step in steps if isinstance(step, Launch) and step.op == "linear_norm")
    function = next(functions, None)
    return None if function is None else Waves(function=function, rows=hopper.ROWS, full=FULL)


def _fuse(steps: list[Step], at: int, sm: int) -> None:
    norm = steps[at]
    assert isinstance(norm, Launch)
    x, a, total = (norm.operands[name] for name in ("x", "a", "total"))
    out = _only_output(norm)
    if x is None or out is None or norm.attrs["kind"] == "none" or norm.attrs["factor"] != 1.0:
        return
    for addend, residual in ((a, x), (x, a)):
        maker = None if addend is None else sole_maker(steps, addend, at, ("linear", "linear_norm"))
        product = None if maker is None else steps[maker]
        if maker is None or not isinstance(product, Launch):
            continue
        fused = _with_norm(product, norm, residual, total, out)
        if fused is not None and _fits(fused, sm):
            steps[at] = fused
            del steps[maker]
            return


def _only_output(norm: Launch) -> Operand | None:
    """Where the norm goes, if it is to one place; the sum may go to another."""
    written = [norm.operands[name] for name in norm.writes if name != "total"]
    return written[0] if len(written) == 1 else None


def _with_norm(
    product: Launch, norm: Launch, residual: Operand | None, total: Operand | None, out: Operand
) -> Launch | None:
    """The launch that computes both; None where the product does more than multiply, or was normalised in another way."""
    given, attrs = product.operands, {name: norm.attrs[name] for name in ("kind", "eps")}
    inner = product.op == "linear_norm"
    if inner:
        # a norm of the product itself: its own scale comes before the sum
        same = all(product.attrs[name] == value for name, value in attrs.items())
        plain = same and not product.attrs["inner"] and not (given["residual"] or given["shift"])
    else:
        plain = product.attrs["act"] == "identity" and not product.attrs["gated"] and not given["residual"]
    if not plain or (inner and residual is None):
        return None
    operands = {
        "x": given["x"],
        "weight": given["weight"],
        "bias": given["bias"],
        "residual": residual,
        "inner_scale": given["scale"] if inner else None,
        "scale": norm.operands["weight"],
        "shift": norm.operands["bias"],
        "total": total,
        "out": out,
    }
    writes = tuple(name for name in ("total", "out") if operands[name] is not None)
    attrs |= {"inner": inner, "rows": norm.attrs["rows"]}
    return Launch(op="linear_norm", attrs=attrs, operands=operands, writes=writes)


def _fits(step: Launch, sm: int) -> bool:
    from bei.kernels import linear_norm  # needs Triton, which only what builds CUDA engines has

    return step.attrs["rows"] == "tokens" and linear_norm.fits(forms_of(step.operands), sm=sm)
