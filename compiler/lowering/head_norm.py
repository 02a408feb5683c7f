"""RMSNorm of the heads of queries and keys, in the form of which TensorRT makes one small kernel.

Its own RMSNormalization reads a head for the statistics and leaves it in fp32 for the kernel that scales and turns it:
2 x (N + K) x H floats a token that nothing else needs. Here one kernel writes the root mean square of each head and no
more; scaling is part of the next kernel, which reads the product as it is. For that the statistics are taken of
queries, keys and values joined (as the product lies in memory; those of the values are not used), and end in a root
(a bare mean would be taken apart again).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bei.compiler.lowering.graph import Graph

FLOAT = ir.DataType.FLOAT
ToHeads = Callable[[ir.Value, int, int], ir.Value]
"""[..., N·H], N and H to [B, L, N, H]."""


@dataclass(frozen=True, eq=False, slots=True)
class _Joined:
    """What queries, keys and values were before and are after they became heads."""

    before: Sequence[ir.Value]
    after: Sequence[ir.Value]
    heads: Sequence[int]
    head_dim: int


class HeadNorm:
    """Norms of values that were split into heads together."""

    def __init__(self, g: Graph, to_heads: ToHeads) -> None:
        self.g, self.to_heads = g, to_heads
        self._joined: dict[ir.Value, _Joined] = {}
        self._rms_of: dict[tuple[ir.Value, float], ir.Value] = {}

    def __contains__(self, x: ir.Value) -> bool:
        return x in self._joined

    def split(self, xs: Sequence[ir.Value], heads: Sequence[int], head_dim: int) -> list[ir.Value]:
        """Each as heads."""
        apart = [self.to_heads(x, count, head_dim) for x, count in zip(xs, heads, strict=True)]
        joined = _Joined(before=xs, after=apart, heads=heads, head_dim=head_dim)
        self._joined.update(dict.fromkeys(apart, joined))
        return apart

    def __call__(self, x: ir.Value, weight: ir.Value, eps: float) -> ir.Value:
        """x / rms(x) · weight in fp32, for an x that ``split`` gave."""
        g = self.g
        return g.op("Mul", g.op("Div", g.cast(x, FLOAT), self._rms(x, eps)), weight)

    def _rms(self, x: ir.Value, eps: float) -> ir.Value:
        """[B, L, N, 1] fp32: sqrt(mean(x²) + eps)."""
        if (x, eps) not in self._rms_of:
            joined = self._joined[x]
            found = self.g.split(self._measure(joined, eps), joined.heads, axis=-2)
            self._rms_of.update({(y, eps): rms for y, rms in zip(joined.after, found, strict=True)})
        return self._rms_of[x, eps]

    def _measure(self, joined: _Joined, eps: float) -> ir.Value:
        g = self.g
        together = g.join(joined.before, -1)
        x = g.cast(self.to_heads(together, sum(joined.heads), joined.head_dim), FLOAT)
        mean = g.op("ReduceMean", g.op("Mul", x, x), g.ints(-1), keepdims=1)
        return g.op("Sqrt", g.op("Add", mean, g.scalar(eps, FLOAT)))
