"""The encoder written as an ONNX graph, node by node, in exactly the patterns that the backends fuse."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from bei.adapters.config import Act, DynamicNtk, Moe, NormKind, Rope
from bei.adapters.head import Pooling
from bei.compiler import positions
from bei.compiler.lowering.attention import attention
from bei.compiler.lowering.graph import Graph
from bei.compiler.lowering.head_norm import HeadNorm
from bei.compiler.lowering.layout import Layout, Packed, Padded
from bei.compiler.lowering.masks import BOOL, FLOAT, INT64, Masks
from bei.compiler.lowering.policy import GraphPolicy
from bei.compiler.ops import STREAM_NORMS, Attention, Index
from bei.compiler.precision.policy import Wide, unit_of

WIDE: dict[Wide, ir.DataType] = {"bf16": ir.DataType.BFLOAT16, "fp32": FLOAT}


class OnnxOps:
    """`Ops` over graph values. Linears give the policy's compute dtype; norms, sums and the head give fp32."""

    def __init__(
        self,
        g: Graph,
        policy: GraphPolicy,
        position_pad: int | None,
        islands: Mapping[str, Wide] | None = None,
    ) -> None:
        self.g, self.policy, self.position_pad = g, policy, position_pad
        self.islands = islands or {}
        self.layout: Layout = (Packed if policy.layout == "packed" else Padded)(g, policy.index)
        self.masks = Masks(g, self.layout)
        self._head_norm = HeadNorm(g, self._to_heads)
        self._angle_cache: dict[Rope, tuple[ir.Value, ir.Value]] = {}

    # --- embeddings

    def embed(self, name: str, index: Index, rows: int, dim: int) -> ir.Value:
        where = {"tokens": self.layout.tokens, "types": self.layout.types, "positions": self._positions}[
            index
        ]()
        table = self.g.stored(f"{name}.weight")
        if index == "tokens" and self.policy.accumulate32:
            table = self.g.cast(
                table, self.policy.compute
            )  # folded at build: the plan holds the big table once, halved
        picked = self.g.cast(self.g.op("Gather", table, where, axis=0), FLOAT)
        if index == "tokens" or (index == "positions" and self.position_pad is not None):
            picked = self.layout.clear(picked)
        scale = self.g.weights[f"{name}.weight"].scale
        return picked if scale == 1.0 else self.scale(picked, scale)

    def _positions(self) -> ir.Value:
        if self.position_pad is None:
            return self.layout.index()
        return self.layout.counted(self.position_pad)

    def row(self, name: str, dim: int) -> ir.Value:
        return self.g.reshape(self.g.weight(f"{name}.weight", FLOAT), dim)

    # --- token-wise

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        stream = self.policy.stream
        return self.g.op("Add", self.g.cast(a, stream), self.g.cast(b, stream))

    def scale(self, x: ir.Value, factor: float) -> ir.Value:
        assert x.dtype is not None
        return self.g.op("Mul", x, self.g.scalar(factor, x.dtype))

    def norm(self, x: ir.Value, name: str, kind: NormKind, eps: float, dim: int) -> ir.Value:
        if kind == "rms" and self.policy.attention == "standard" and x in self._head_norm:
            return self._head_norm(x, self.g.weight(f"{name}.weight", FLOAT), eps)
        dtype = self.policy.norm if name.startswith(("layers.", "embed.")) else FLOAT
        weight = self.g.weight(f"{name}.weight", dtype)
        x = self.g.cast(x, dtype)
        if kind == "rms":
            y = self.g.op("RMSNormalization", x, weight, axis=-1, epsilon=eps)
        else:
            bias = self.g.weight(f"{name}.bias", dtype) if self.g.has(f"{name}.bias") else None
            y = self.g.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=eps)
        if self.policy.normed is not None and name.endswith(STREAM_NORMS):
            return self.g.cast(y, self.policy.normed)
        return y

    def linear(self, x: ir.Value, names: Sequence[str], outs: Sequence[int], dim: int) -> list[ir.Value]:
        if self.policy.joined and len(names) > 1:
            return self._joined(x, names, outs)
        return [self._linear(x, name, self._dtype(name)) for name in names]

    def _joined(self, x: ir.Value, names: Sequence[str], outs: Sequence[int]) -> list[ir.Value]:
        """One product for all, as TensorRT would make of them by itself, with a copy of every weight."""
        g, dtype = self.g, self._dtype(names[0])
        weight = g.op("Concat", *(g.weight(f"{name}.weight", dtype) for name in names), axis=0)
        y = self._product(x, weight, dtype, transpose=True)
        biases = [f"{name}.bias" for name in names]
        if not all(map(g.has, biases)):
            parts = g.split(y, outs)
            return [self._biased(part, name, dtype) for part, name in zip(parts, names, strict=True)]
        bias = g.op("Concat", *(g.weight(name, dtype) for name in biases), axis=0)
        return list(g.split(g.op("Add", y, bias), outs))

    def _dtype(self, site: str) -> ir.DataType:
        """What a site stores: the compute dtype, or its unit's wider one (never narrower than compute)."""
        wide = self.islands.get(unit_of(site) or "")
        if wide is None or self.policy.compute == FLOAT:
            return self.policy.compute
        return self.policy.wide or WIDE[wide]

    def _linear(self, x: ir.Value, name: str, dtype: ir.DataType) -> ir.Value:
        """x · Wᵀ + b stored as ``dtype``. Cast16(MatMul(Cast32 x, Cast32 W)) is how TensorRT accumulates in fp32."""
        y = self._product(x, self.g.weight(f"{name}.weight", dtype), dtype, transpose=True)
        return self._biased(y, name, dtype)

    def _product(self, x: ir.Value, weight: ir.Value, dtype: ir.DataType, *, transpose: bool) -> ir.Value:
        g, wide = self.g, self.policy.accumulate32 and dtype == ir.DataType.FLOAT16
        x = g.cast(x, dtype)
        if (
            wide
        ):  # a cast of its own for each product: shared, TensorRT no longer sees the pattern (fp32 GEMMs)
            x, weight = g.op("Cast", x, dtype=FLOAT, to=int(FLOAT)), g.cast(weight, FLOAT)
        if transpose:
            weight = g.op("Transpose", weight, perm=[1, 0])
        return g.cast(g.op("MatMul", x, weight), dtype)

    def _biased(self, y: ir.Value, name: str, dtype: ir.DataType) -> ir.Value:
        if not self.g.has(f"{name}.bias"):
            return y
        return self.g.op("Add", y, self.g.weight(f"{name}.bias", dtype))

    def activation(self, x: ir.Value, act: Act, site: str | None = None) -> ir.Value:
        g = self.g
        match act:
            case "gelu":
                return g.op("Gelu", x, approximate="none")
            case "gelu_tanh":
                return g.op("Gelu", x, approximate="tanh")
            case "silu":
                return g.op("Mul", x, g.op("Sigmoid", x))
            case "relu":
                return g.op("Relu", x)
            case "tanh":
                return g.op("Tanh", x)
            case "sigmoid":
                return g.op("Sigmoid", x)
            case "identity":
                return x

    def gate(self, gate: ir.Value, up: ir.Value, act: Act, site: str) -> ir.Value:
        return self.g.op("Mul", self.activation(gate, act), up)

    def moe(self, x: ir.Value, name: str, moe: Moe, act: Act, dim: int, ffn: int) -> ir.Value:
        """Every expert for every token, those not chosen times 0: Σ over experts is one product with [E·F, D]."""
        g, compute = self.g, self._dtype(name)
        share = self._routing(x, name, moe)
        hidden = self.activation(self._linear(x, f"{name}.w1", compute), act)
        experts = g.op("Reshape", hidden, self._shape(hidden, moe.experts, ffn))
        weighted = g.op("Mul", experts, g.unsqueeze(g.cast(share, compute), -1))
        flat = g.op("Reshape", weighted, self._shape(hidden, moe.experts * ffn))
        y = self._product(flat, g.weight(f"{name}.w2.weight", compute), compute, transpose=False)
        return self._biased(y, name, compute)

    def _routing(self, x: ir.Value, name: str, moe: Moe) -> ir.Value:
        """[..., E] fp32: softmax over the experts, kept for the best k."""
        g = self.g
        probs = g.op("Softmax", self._linear(x, f"{name}.router", FLOAT), axis=-1)
        chosen = g.op(
            "OneHot",
            g.top_k(probs, moe.top_k),
            g.scalar(moe.experts, INT64),
            g.constant([0.0, 1.0], FLOAT),
            dtype=FLOAT,
            axis=-1,
        )
        share = g.op("Mul", probs, g.op("ReduceSum", chosen, g.ints(-2), keepdims=0))
        if not moe.renormalize:
            return share
        return g.op("Div", share, g.op("ReduceSum", share, g.ints(-1), keepdims=1))

    def _shape(self, x: ir.Value, *last: int) -> ir.Value:
        """A Reshape target: the token axes of x, then ``last``."""
        return (
            self.g.ints(*(0,) * (self.layout.rank - 1), -1, *last)
            if self.layout.rank == 1
            else self.g.ints(0, 0, *last)
        )

    # --- attention

    def split(self, xs: Sequence[ir.Value], heads: Sequence[int], head_dim: int) -> list[ir.Value]:
        """In slots from here on, packed or not: attention wants them so, and to turn slots takes angles of one row, not
        of every token (which TensorRT would keep in memory for all layers)."""
        return self._head_norm.split(xs, heads, head_dim)

    def _to_heads(self, x: ir.Value, heads: int, head_dim: int) -> ir.Value:
        return self.layout.pad(self.g.op("Reshape", x, self._shape(x, heads, head_dim)))

    def rope(self, x: ir.Value, rope: Rope, head_dim: int) -> ir.Value:
        """x·cos + (the other of its pair)·±sin: a builder's time goes with the slices and joins it is given, so there are
        no more than these."""
        g = self.g
        cos, sin = self._angles(rope)
        x = g.cast(x, FLOAT)
        turned, *kept = [x] if rope.dim == head_dim else g.split(x, (rope.dim, head_dim - rope.dim))
        others = g.op("Mul", self._partners(turned, rope), sin)
        turned = g.op("Add", g.op("Mul", turned, cos), others)
        return g.op("Concat", turned, *kept, axis=-1) if kept else turned

    def _partners(self, x: ir.Value, rope: Rope) -> ir.Value:
        """Each feature replaced by the other of its pair."""
        g = self.g
        if not rope.interleaved:
            return g.op("Concat", *reversed(g.split(x, 2)), axis=-1)
        pairs = g.split(g.reshape(x, 0, 0, 0, rope.dim // 2, 2), 2)
        return g.reshape(g.op("Concat", *reversed(pairs), axis=-1), 0, 0, 0, rope.dim)

    def _angles(self, rope: Rope) -> tuple[ir.Value, ir.Value]:
        """cos, sin fp32 over [1 or B, L, 1, dim], shared by the layers that turn alike; sin with the sign that the partner
        gets."""
        if rope not in self._angle_cache:
            g = self.g
            at = g.unsqueeze(g.cast(self.layout.slots(), FLOAT), -1)
            angle = g.unsqueeze(g.op("Mul", at, self._frequencies(rope)), -2)
            sign = positions.of_pairs(rope, -np.ones(rope.dim // 2), np.ones(rope.dim // 2))
            sin = g.op("Mul", g.op("Sin", angle), g.constant(sign, FLOAT))
            self._angle_cache[rope] = (g.op("Cos", angle), sin)
        return self._angle_cache[rope]

    def _frequencies(self, rope: Rope) -> ir.Value:
        g = self.g
        if not isinstance(rope.scaling, DynamicNtk):
            frequencies = positions.inv_freq(rope)
            return g.constant(positions.of_pairs(rope, frequencies, frequencies), FLOAT)
        grow = positions.ntk_growth(rope)
        n = g.cast(g.op("ReduceSum", self.layout.mask(), g.ints(1), keepdims=1), FLOAT)
        stretch = g.op("Add", g.op("Mul", n, g.scalar(grow.slope, FLOAT)), g.scalar(grow.offset, FLOAT))
        stretch = g.op("Pow", g.op("Max", stretch, g.scalar(1, FLOAT)), g.scalar(grow.power, FLOAT))
        theta = g.op("Mul", stretch, g.scalar(rope.theta, FLOAT))
        exponents = -np.arange(0, rope.dim, 2, dtype=np.float32) / rope.dim
        exponents = positions.of_pairs(rope, exponents, exponents)
        return g.op("Pow", g.unsqueeze(theta, -1), g.constant(exponents, FLOAT))

    def attention(self, q: ir.Value, k: ir.Value, v: ir.Value, spec: Attention, site: str) -> ir.Value:
        compute = self._dtype(site)
        island = compute != self.policy.compute
        policy = replace(
            self.policy,
            compute=compute,
            accumulate32=self.policy.accumulate32 and not island,
            decomposable=self.policy.decomposable or (island and compute == FLOAT),
        )
        return attention(self.g, self.layout, self.masks, policy, q, k, v, spec)

    # --- head

    @cached_property
    def _mask(self) -> ir.Value:
        """BOOL [B, L]"""
        return self.g.cast(self.layout.mask(), BOOL)

    @cached_property
    def _at(self) -> ir.Value:
        """[1, L] slot numbers, in the index dtype"""
        length = self.g.dim(self.layout.mask(), 1, self.policy.index)
        return self.g.unsqueeze(self.g.range(length), 0)

    def pool(self, x: ir.Value, pooling: Pooling, include_prompt: bool) -> ir.Value:
        g = self.g
        x = g.cast(self.layout.pad(x), FLOAT)
        if pooling == "cls":
            return self._first(x, include_prompt)
        keep = self._mask if include_prompt else self._after_prompt()
        if pooling == "last":
            last = g.op("ReduceMax", g.op("Mul", self._at, self.layout.mask()), g.ints(1), keepdims=1)
            chosen = g.op("Equal", self._at, last, dtype=BOOL)
            return self._sum(x, chosen if include_prompt else g.op("And", keep, chosen))
        if pooling == "max":
            floor = g.scalar(-1e9, FLOAT)
            return g.op(
                "ReduceMax",
                g.op("Where", g.unsqueeze(keep, -1), x, floor, dtype=FLOAT),
                g.ints(1),
                keepdims=0,
            )
        weight = g.cast(keep, FLOAT)
        if pooling == "weighted_mean":
            number = g.cast(g.op("Add", self._at, g.scalar(1, self.policy.index)), FLOAT)
            weight = g.op("Mul", weight, number)
            x = g.op("Mul", x, g.unsqueeze(number, -1))
        count = g.op("Max", g.op("ReduceSum", weight, g.ints(1), keepdims=1), g.scalar(1e-9, FLOAT))
        return g.op("Div", self._sum(x, keep), g.op("Sqrt", count) if pooling == "mean_sqrt_len" else count)

    def _first(self, x: ir.Value, include_prompt: bool) -> ir.Value:
        """[B, D]: the first token, or the first after the prompt where there is one."""
        g = self.g
        if include_prompt:
            return g.op("Gather", x, g.scalar(0, INT64), axis=1)
        length = g.op("ReduceSum", self.layout.mask(), g.ints(1), keepdims=1)
        skipped = self._prompt()
        inside = g.op("Less", skipped, length, dtype=BOOL)
        first = g.op("Where", inside, skipped, g.scalar(0, self.policy.index), dtype=self.policy.index)
        return self._sum(x, g.op("Equal", self._at, first, dtype=BOOL))

    def _sum(self, x: ir.Value, keep: ir.Value) -> ir.Value:
        """[B, D]: a Where, not a product, so that nothing in the padding can leak."""
        g = self.g
        kept = g.op("Where", g.unsqueeze(keep, -1), x, g.scalar(0, FLOAT), dtype=FLOAT)
        return g.op("ReduceSum", kept, g.ints(1), keepdims=0)

    def _prompt(self) -> ir.Value:
        """[B, 1] tokens of the prompt, in the index dtype"""
        return self.g.unsqueeze(self.g.input("prompt_length", self.policy.index, ("batch",)), 1)

    def _after_prompt(self) -> ir.Value:
        g = self.g
        return g.op("And", self._mask, g.op("GreaterOrEqual", self._at, self._prompt(), dtype=BOOL))

    def concat(self, parts: Sequence[ir.Value]) -> ir.Value:
        return self.g.op("Concat", *parts, axis=-1)

    def to_float(self, x: ir.Value) -> ir.Value:
        return self.g.cast(x, FLOAT)

    def dense(self, x: ir.Value, name: str, out: int, dim: int) -> ir.Value:
        return self._linear(x, name, FLOAT)

    def normalize(self, x: ir.Value) -> ir.Value:
        g = self.g
        length = g.op("ReduceL2", x, g.ints(-1), keepdims=1)
        return g.op("Div", x, g.op("Max", length, g.scalar(1e-12, FLOAT)))

    def tokens(self, x: ir.Value) -> ir.Value:
        return self.layout.pad(x)
