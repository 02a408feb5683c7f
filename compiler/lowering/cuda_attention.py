"""Attention as launches: norm and rotation of queries and keys in one kernel, then attention itself."""

import hashlib
import math
from typing import Any, Literal

import numpy as np

from bei.adapters.config import DynamicNtk, RelativeBuckets, Rope
from bei.compiler import positions
from bei.compiler.lowering.cuda_program import Program
from bei.compiler.lowering.cuda_values import Heads, Norm
from bei.compiler.ops import Attention
from bei.cuda_plan import Operand


def emit_attention(program: Program, q: Operand, k: Operand, v: Operand, spec: Attention) -> Operand:
    """One launch over the batch's work items; the result [tokens, N·H] in the type of ``q``, ``k`` and ``v``."""
    bias, kind = _bias(program, spec)
    out = program.buffer("tokens", spec.heads * spec.head_dim, q.dtype)
    attrs = {
        "heads": spec.heads,
        "kv_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "scale": spec.scale,
        "causal": spec.causal,
        "window": spec.window,
        "softcap": spec.softcap,
        "bias_kind": kind,
    }
    operands = {"q": q, "k": k, "v": v, "work": program.input("work"), "bias": bias, "out": out}
    program.launch("attention", attrs, operands, ("out",))
    return out


def _bias(program: Program, spec: Attention) -> tuple[Operand | None, Literal["alibi", "distance"] | None]:
    if isinstance(spec.bias, RelativeBuckets):
        reach = spec.bias.max_distance
        bucket = positions.bucket_of_distance(spec.bias, reach + 1)
        table = program.weights["embed.buckets.weight"].float32()
        return program.constant("distance bias", np.ascontiguousarray(table[bucket].T)), "distance"
    if spec.bias == "alibi":
        return program.constant("alibi slopes", positions.alibi_slopes(spec.heads)[None]), "alibi"
    return None, None


def emit_rope(
    program: Program, heads: Heads, q: Operand, k: Operand, k_norm: Norm | None
) -> tuple[Operand, Operand]:
    """q and k after their norms (``heads`` is the queries') and rotation, in one launch."""
    rope = heads.rope
    ntk = rope is not None and isinstance(rope.scaling, DynamicNtk)
    q_out, k_out = program.buffer("tokens", q.width, q.dtype), program.buffer("tokens", k.width, k.dtype)
    q_weights, k_weights = norm_operands(program, heads.norm), norm_operands(program, k_norm)
    operands = {
        "q": q,
        "k": k,
        "index": program.input("index") if rope else None,
        "owner": program.input("owner") if ntk else None,
        "lengths": program.input("lengths") if ntk else None,
        "frequencies": _frequencies(program, rope) if rope and not ntk else None,
        "q_weight": q_weights["weight"],
        "q_bias": q_weights["bias"],
        "k_weight": k_weights["weight"],
        "k_bias": k_weights["bias"],
        "q_out": q_out,
        "k_out": k_out,
    }
    program.launch("rope", _rope_attrs(heads, ntk), operands, ("q_out", "k_out"))
    return q_out, k_out


def norm_operands(program: Program, norm: Norm | None) -> dict[str, Operand | None]:
    """A norm's weight and bias, None where it has none."""
    if norm is None:
        return {"weight": None, "bias": None}
    return {"weight": program.vector(f"{norm.name}.weight"), "bias": program.vector(f"{norm.name}.bias")}


def _frequencies(program: Program, rope: Rope) -> Operand:
    values = positions.inv_freq(rope)[None]
    return program.constant(f"rope {hashlib.sha256(values.tobytes()).hexdigest()[:8]}", values)


def _rope_attrs(heads: Heads, ntk: bool) -> dict[str, Any]:
    rope, norm = heads.rope, heads.norm
    grow = positions.ntk_growth(rope) if rope and ntk else positions.NtkGrowth(0.0, 1.0, 0.0)
    return {
        "head_dim": heads.head_dim,
        "rotated": rope.dim if rope else 0,
        "interleaved": rope.interleaved if rope else False,
        "kind": norm.kind if norm else "none",
        "eps": norm.eps if norm else 0.0,
        "log2_theta": math.log2(rope.theta) if rope else 0.0,
        "slope": grow.slope,
        "offset": grow.offset,
        "power": grow.power,
    }
