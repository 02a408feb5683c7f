"""Which keys a query sees, and the biases added to scores, as ONNX; built once a graph and shared by its layers.

B batch, L length, N heads. Masks keep one rule: no row is ever fully masked (each token sees itself), so no NaN can
appear in the padding and leak through 0 · NaN; what padding ids look up is cleared (`Layout.clear`).
"""

from collections.abc import Callable
from functools import cached_property

import onnx_ir as ir

from bei.adapters.config import RelativeBuckets
from bei.compiler import positions
from bei.compiler.lowering.graph import Graph
from bei.compiler.lowering.layout import Layout
from bei.compiler.ops import Attention

BOOL, FLOAT, FLOAT16, INT32, INT64 = (
    ir.DataType.BOOL,
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.INT32,
    ir.DataType.INT64,
)
MASKED = {FLOAT: -1e9, FLOAT16: -3e4, ir.DataType.BFLOAT16: -1e9}
"""Finite, and far enough from 0 that exp gives 0; the sum with any bias stays finite."""


class Masks:
    """Builds and caches masks for one graph. ``buckets`` weights are read as ``embed.buckets.weight``."""

    def __init__(self, g: Graph, layout: Layout) -> None:
        self.g, self.layout = g, layout
        self._cache: dict[tuple[object, ...], ir.Value] = {}

    @cached_property
    def key_int(self) -> ir.Value:
        """INT32 [B, L]: 1 for a real key."""
        return self.g.cast(self.layout.mask(), INT32)

    @cached_property
    def key_lengths(self) -> ir.Value:
        """INT32 [B]: how many real keys a row has, all at its left end."""
        return self.g.op("ReduceSum", self.key_int, self.g.ints(1), keepdims=0)

    @cached_property
    def key(self) -> ir.Value:
        """BOOL [B, 1, 1, L]."""
        return self.g.unsqueeze(self.g.cast(self.layout.mask(), BOOL), 1, 2)

    @cached_property
    def _length(self) -> ir.Value:
        return self.g.dim(self.layout.mask(), 1, INT64)

    @cached_property
    def _distance(self) -> ir.Value:
        """INT64 [L, L]: query index − key index."""
        at = self.g.range(self._length)
        return self.g.op("Sub", self.g.unsqueeze(at, 1), self.g.unsqueeze(at, 0))

    @cached_property
    def _diagonal(self) -> ir.Value:
        return self.g.op("Equal", self._distance, self.g.scalar(0, INT64), dtype=BOOL)

    def near(self, window: int | None, causal: bool) -> ir.Value:
        """BOOL [L, L]: what position alone allows."""
        g, d = self.g, self._distance
        low = g.scalar(0 if causal else -(window or 0), INT64)
        seen = g.op("GreaterOrEqual", d, low, dtype=BOOL)
        if window is None:
            return seen
        return g.op("And", seen, g.op("LessOrEqual", d, g.scalar(window, INT64), dtype=BOOL))

    def visible(self, window: int | None, causal: bool) -> ir.Value:
        """BOOL [B, 1, 1, L] without window, else [B, 1, L, L] with the diagonal always set.

        The product is taken in INT32: TensorRT then skips fully masked tiles at run time; as And it would not.
        """
        if window is None and not causal:
            return self.key
        return self._once(("visible", window, causal), lambda: self._visible(window, causal))

    def _visible(self, window: int | None, causal: bool) -> ir.Value:
        g = self.g
        both = g.op("Mul", g.cast(self.key, INT32), g.cast(self.near(window, causal), INT32))
        return g.cast(g.op("Max", both, g.cast(self._diagonal, INT32)), BOOL)

    def bias(self, spec: Attention, dtype: ir.DataType) -> ir.Value | None:
        """[1, N, L, L] added to the scaled scores, or None."""
        if spec.bias is None:
            return None
        return self._once(("bias", spec.bias, dtype), lambda: self._bias(spec, dtype))

    def _bias(self, spec: Attention, dtype: ir.DataType) -> ir.Value:
        g = self.g
        if isinstance(spec.bias, RelativeBuckets):
            return g.cast(self._buckets(spec.bias), dtype)
        slopes = -positions.alibi_slopes(spec.heads)[:, None, None]
        away = g.cast(g.op("Abs", self._distance), FLOAT)
        return g.cast(g.unsqueeze(g.op("Mul", away, g.constant(slopes, FLOAT)), 0), dtype)

    def _buckets(self, spec: RelativeBuckets) -> ir.Value:
        """Distances beyond max_distance share the last bucket, so a table of that reach serves every length."""
        g, reach = self.g, spec.max_distance
        table = g.constant(positions.bucket_of_distance(spec, reach + 1), INT64)
        r = g.op("Clip", g.op("Neg", self._distance), g.scalar(-reach, INT64), g.scalar(reach, INT64))
        bucket = g.op("Gather", table, g.op("Add", r, g.scalar(reach, INT64)), axis=0)
        rows = g.op("Gather", g.stored("embed.buckets.weight"), bucket, axis=0)
        return g.unsqueeze(g.op("Transpose", g.cast(rows, FLOAT), perm=[2, 0, 1]), 0)

    def additive(self, spec: Attention, dtype: ir.DataType) -> ir.Value:
        """Bias and visibility in one additive mask [B, 1 or N, 1 or L, L]."""
        key = ("additive", spec.bias, spec.window, spec.causal, dtype)
        return self._once(key, lambda: self._additive(spec, dtype))

    def _additive(self, spec: Attention, dtype: ir.DataType) -> ir.Value:
        g = self.g
        seen = self.visible(spec.window, spec.causal)
        base = self.bias(spec, dtype) or g.scalar(0, dtype)
        return g.op("Where", seen, base, g.scalar(MASKED[dtype], dtype), dtype=dtype)

    def _once(self, key: tuple[object, ...], make: Callable[[], ir.Value]) -> ir.Value:
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]
