"""A mixture of experts as launches: grouped (tokens sorted by expert, one launch a product), or dense."""

from dataclasses import dataclass

from bei.adapters.config import Act, Moe
from bei.compiler.lowering.cuda_program import Program
from bei.cuda_plan import DType, Operand, Product


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """``name`` as in the weights, its shape, and the type its values are stored in."""

    name: str
    moe: Moe
    act: Act
    dim: int
    ffn: int
    dtype: DType


def grouped(program: Program, mixture: Mixture, x: Operand, logits: Operand) -> Operand:
    """Each token's chosen experts only: route, sort, two products over the sorted slots, weighted sum."""
    from bei.kernels.place import slots

    m, rows, moe = mixture, x.rows, mixture.moe
    chosen = program.buffer(rows, moe.top_k, "i32")
    share = program.buffer(rows, moe.top_k, "f32")
    counts = program.buffer(rows, moe.experts, "i32")
    program.launch(
        "route",
        {"renormalize": moe.renormalize},
        {"logits": logits, "chosen": chosen, "share": share, "counts": counts},
        ("chosen", "share", "counts"),
    )
    program.reserve_slots(slots(moe.top_k, moe.experts))
    order, groups = program.buffer("slots", 1, "i32"), program.buffer("one", 2 * moe.experts, "i32")
    slot = program.buffer(rows, moe.top_k, "i32")
    program.launch(
        "place",
        {},
        {"chosen": chosen, "counts": counts, "order": order, "slot": slot, "groups": groups},
        ("order", "slot", "groups"),
    )
    hidden = program.buffer("slots", m.ffn, m.dtype)
    y = program.buffer("slots", m.dim, m.dtype)
    for source, part, out, width in ((x, "w1", hidden, m.dim), (hidden, "w2", y, m.dim)):
        first = part == "w1"
        program.launch(
            "linear",
            {
                "act": m.act if first else "identity",
                "gated": False,
                "transposed": not first,
                "rows": "slots",
            },
            {
                "x": source,
                "weight": program.matrix((f"{m.name}.{part}.weight",), width, m.dtype),
                "bias": None,
                "residual": None,
                "order": order if first else None,
                "groups": groups,
                "out": out,
            },
            ("out",),
        )
    result = program.buffer(rows, m.dim, m.dtype)
    bias = program.biases((m.name,), (m.dim,), m.dtype)
    program.launch(
        "combine", {}, {"y": y, "slot": slot, "share": share, "bias": bias, "out": result}, ("out",)
    )
    return result


def dense(program: Program, mixture: Mixture, x: Operand, logits: Operand) -> Operand:
    """Every expert for every token, those not chosen times 0: the sum over experts is one product with [E·F, D]."""
    m, moe = mixture, mixture.moe
    wide = moe.experts * m.ffn
    hidden, weighed = program.buffer(x.rows, wide, m.dtype), program.buffer(x.rows, wide, m.dtype)
    w1 = program.matrix((f"{m.name}.w1.weight",), m.dim, m.dtype)
    program.steps.append(Product(x=x, weight=w1, bias=None, out=hidden))
    program.launch(
        "expert",
        {"act": m.act, "top_k": moe.top_k, "renormalize": moe.renormalize},
        {"logits": logits, "hidden": hidden, "out": weighed},
        ("out",),
    )
    out = program.buffer(x.rows, m.dim, m.dtype)
    w2 = program.matrix((f"{m.name}.w2.weight",), m.dim, m.dtype)
    bias = program.biases((m.name,), (m.dim,), m.dtype)
    program.steps.append(Product(x=weighed, weight=w2, bias=bias, out=out, transposed=True))
    return out
