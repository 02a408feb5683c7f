"""The ONNX graph with a look inside: for each site one more output, its largest magnitude over real tokens."""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from bei.adapters.config import Act, Moe, NormKind
from bei.compiler.lowering.graph import Graph
from bei.compiler.lowering.masks import BOOL, FLOAT
from bei.compiler.lowering.onnx_ops import OnnxOps
from bei.compiler.lowering.policy import GraphPolicy
from bei.compiler.ops import Attention
from bei.compiler.precision.policy import Wide


class ProbedOnnxOps(OnnxOps):
    """`OnnxOps` over the padded layout that keeps ``probes``: site → scalar fp32."""

    def __init__(
        self,
        g: Graph,
        policy: GraphPolicy,
        position_pad: int | None,
        islands: Mapping[str, Wide] | None = None,
    ) -> None:
        super().__init__(g, policy, position_pad, islands)
        assert policy.layout == "padded"
        self.probes: dict[str, ir.Value] = {}

    def _see(self, site: str, x: ir.Value) -> ir.Value:
        """Record max |x| where the mask is set; x is [B, L, D], or [B, L, N, H] after the head split."""
        g = self.g
        flat = g.op("Reshape", g.op("Abs", g.cast(x, FLOAT)), g.ints(0, 0, -1))
        largest = g.op("ReduceMax", flat, g.ints(2), keepdims=0)
        real = g.cast(self.layout.mask(), BOOL)
        kept = g.op("Where", real, largest, g.scalar(0, FLOAT), dtype=FLOAT)
        self.probes[site] = g.op("ReduceMax", kept, g.ints(0, 1), keepdims=0)
        return x

    def norm(self, x: ir.Value, name: str, kind: NormKind, eps: float, dim: int) -> ir.Value:
        y = super().norm(x, name, kind, eps, dim)
        if not name.startswith("head."):
            self._see(f"{name}.in", x)
            self._see(name, y)
        return y

    def linear(self, x: ir.Value, names: Sequence[str], outs: Sequence[int], dim: int) -> list[ir.Value]:
        results = super().linear(x, names, outs, dim)
        return [self._see(name, y) for name, y in zip(names, results, strict=True)]

    def attention(self, q: ir.Value, k: ir.Value, v: ir.Value, spec: Attention, site: str) -> ir.Value:
        for name, x in (("q", q), ("k", k), ("v", v)):
            self._see(f"{site}.{name}", x)
        return self._see(site, super().attention(q, k, v, spec, site))

    def activation(self, x: ir.Value, act: Act, site: str | None = None) -> ir.Value:
        y = super().activation(x, act, site)
        return y if site is None else self._see(site, y)

    def gate(self, gate: ir.Value, up: ir.Value, act: Act, site: str) -> ir.Value:
        return self._see(site, super().gate(gate, up, act, site))

    def moe(self, x: ir.Value, name: str, moe: Moe, act: Act, dim: int, ffn: int) -> ir.Value:
        return self._see(name, super().moe(x, name, moe, act, dim, ffn))
