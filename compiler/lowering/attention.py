"""Attention in the forms the backends fuse: one function a form.

q [..., N, H], k and v [..., K, H] token-wise; every form returns [..., N·H] token-wise.
"""

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from bei.compiler.lowering.graph import CONTRIB, Graph
from bei.compiler.lowering.layout import Layout
from bei.compiler.lowering.masks import FLOAT, MASKED, Masks
from bei.compiler.lowering.policy import GraphPolicy
from bei.compiler.ops import Attention


def attention(
    g: Graph,
    layout: Layout,
    masks: Masks,
    policy: GraphPolicy,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    spec: Attention,
) -> ir.Value:
    """softmax(cap(scale·q·kᵀ) + bias)·v over visible keys, in the policy's form (soft cap only has the primitive)."""
    q, k, v = (g.cast(x, policy.compute) for x in (q, k, v))
    if spec.softcap is not None or policy.attention != "standard":
        form = _mha if policy.attention == "mha" and spec.softcap is None else _primitive
        out = form(g, masks, policy, q, k, v, spec)
    else:
        q, k, v = _as_one(g, q, k, v, spec)
        out = _standard(g, masks, policy, q, k, v, spec)
    return layout.unpad(out, spec.heads * spec.head_dim)


def _as_one(g: Graph, q: ir.Value, k: ir.Value, v: ir.Value, spec: Attention) -> Sequence[ir.Value]:
    """q, k, v joined and split again: TensorRT then makes one kernel of their biases, gathers and transposes, where
    three apart take three."""
    joined = g.op("Concat", q, k, v, axis=-2)
    return g.split(joined, (spec.heads, spec.kv_heads, spec.kv_heads), axis=-2)


def _mha(
    g: Graph, masks: Masks, policy: GraphPolicy, q: ir.Value, k: ir.Value, v: ir.Value, spec: Attention
) -> ir.Value:
    """com.microsoft.MultiHeadAttention: flat [B, L, N·H]; key mask INT32 [B, L] or lengths [B], or one additive
    [B, N, L, L]: there a bias or window leaves no fused form that also takes lengths."""
    k, v = _repeat(g, k, spec), _repeat(g, v, spec)
    flat = [g.reshape(x, 0, 0, spec.heads * spec.head_dim) for x in (q, k, v)]
    positional = spec.window is not None or spec.causal or (policy.key_lengths and spec.bias is not None)
    key = None if positional else masks.key_lengths if policy.key_lengths else masks.key_int
    bias = masks.additive(spec, policy.compute) if positional else masks.bias(spec, policy.compute)
    return g.op(
        "MultiHeadAttention",
        *flat,
        None,
        key,
        bias,
        domain=CONTRIB,
        num_heads=spec.heads,
        scale=spec.scale,
        mask_filter_value=MASKED[policy.compute],
    )


def _standard(
    g: Graph, masks: Masks, policy: GraphPolicy, q: ir.Value, k: ir.Value, v: ir.Value, spec: Attention
) -> ir.Value:
    """ONNX Attention-23 over [B, N, L, H]. A BOOL mask, or with a bias one additive mask in the compute dtype;
    q, k, v cast up and the result down so that both products accumulate in fp32.

    Causal attention needs no mask of the padding: that is at a row's right end, where no real token looks.
    """
    heads_first = [g.op("Transpose", x, perm=[0, 2, 1, 3]) for x in (q, k, v)]
    if policy.accumulate32:
        heads_first = [g.cast(x, FLOAT) for x in heads_first]
    attributes: dict[str, Any] = {"scale": spec.scale}
    mask: ir.Value | None
    if spec.bias is not None:
        mask = masks.additive(spec, policy.compute)
    elif spec.causal and spec.window is not None:
        mask = masks.near(spec.window, causal=True)
    elif spec.causal:
        mask, attributes["is_causal"] = None, 1
    else:
        mask = masks.visible(spec.window, causal=False)
    if policy.decomposable:
        attributes["TRT_decomposable"] = 1
    out = g.op("Attention", *heads_first, mask, **attributes)
    return _merge(g, g.cast(out, policy.compute), spec)


def _primitive(
    g: Graph, masks: Masks, policy: GraphPolicy, q: ir.Value, k: ir.Value, v: ir.Value, spec: Attention
) -> ir.Value:
    """Two matrix products around an fp32 softmax."""
    k, v = _repeat(g, k, spec), _repeat(g, v, spec)
    q, k, v = (g.op("Transpose", x, perm=[0, 2, p, 4 - p]) for x, p in ((q, 1), (k, 3), (v, 1)))
    q = g.op("Mul", g.cast(q, FLOAT), g.scalar(spec.scale, FLOAT))
    scores = g.op("MatMul", q, g.cast(k, FLOAT))
    if spec.softcap is not None:
        cap = g.scalar(spec.softcap, FLOAT)
        scores = g.op("Mul", g.op("Tanh", g.op("Div", scores, cap)), cap)
    scores = g.op("Add", scores, masks.additive(spec, FLOAT))
    out = g.op("MatMul", g.op("Softmax", scores, axis=-1), g.cast(v, FLOAT))
    return _merge(g, g.cast(out, policy.compute), spec)


def _repeat(g: Graph, x: ir.Value, spec: Attention) -> ir.Value:
    """[B, L, K, H] → [B, L, N, H]: each key/value head serves N/K neighbouring query heads."""
    group = spec.heads // spec.kv_heads
    if group == 1:
        return x
    wide = g.op("Expand", g.unsqueeze(x, 3), g.ints(1, 1, 1, group, 1))
    return g.reshape(wide, 0, 0, spec.heads, spec.head_dim)


def _merge(g: Graph, x: ir.Value, spec: Attention) -> ir.Value:
    """[B, N, L, H] → [B, L, N·H]."""
    return g.reshape(g.op("Transpose", x, perm=[0, 2, 1, 3]), 0, 0, spec.heads * spec.head_dim)
