"""A small recorder of ONNX nodes: names, constants, casts and weights that stay in the checkpoint's file."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bei.compiler.weights import Weight

OPSET = 23
IR_VERSION = 10
CONTRIB = "com.microsoft"

DTYPES = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}
NUMPY: dict[ir.DataType, Any] = {
    ir.DataType.FLOAT: np.float32,
    ir.DataType.FLOAT16: np.float16,
    ir.DataType.BFLOAT16: ml_dtypes.bfloat16,
    ir.DataType.INT32: np.int32,
    ir.DataType.INT64: np.int64,
}


class Graph:
    """Nodes in order, constants and weights by name. Every value's dtype is known when it is made."""

    def __init__(self, weights: Mapping[str, Weight]) -> None:
        self.weights = weights
        self.inputs: dict[str, ir.Value] = {}
        self.used: dict[str, Weight] = {}
        self._tape = ir.tape.Tape()
        self._initializers: dict[str, ir.Value] = {}
        self._constants: dict[tuple[Any, ...], ir.Value] = {}
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._domains = {"": OPSET}

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[str | int]) -> ir.Value:
        """A graph input; asking twice gives the same one."""
        if name not in self.inputs:
            self.inputs[name] = ir.val(name, dtype, shape)
        return self.inputs[name]

    def op(
        self,
        kind: str,
        *inputs: ir.Value | None,
        dtype: ir.DataType | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """One node with one output; its dtype is the first input's unless given."""
        trimmed = list(inputs)
        while trimmed and trimmed[-1] is None:
            trimmed.pop()
        out = self._tape.op(kind, trimmed, attributes, domain=domain)
        known = (
            dtype if dtype is not None else (inputs[0].dtype if inputs and inputs[0] is not None else None)
        )
        assert known is not None, f"{kind}: dtype unknown"
        out.dtype = known
        if domain:
            self._domains[domain] = 1
        return out

    def split(self, x: ir.Value, parts: int | Sequence[int], axis: int = -1) -> Sequence[ir.Value]:
        """So many equal parts along an axis, or parts of the given sizes."""
        if isinstance(parts, int):
            outs = self._tape.op_multi_out(
                "Split", [x], {"axis": axis, "num_outputs": parts}, num_outputs=parts
            )
        else:
            sizes = self.ints(*parts)
            outs = self._tape.op_multi_out("Split", [x, sizes], {"axis": axis}, num_outputs=len(parts))
        assert x.dtype is not None
        for out in outs:
            out.dtype = x.dtype
        return outs

    def join(self, parts: Sequence[ir.Value], axis: int) -> ir.Value:
        """One below the other along an axis; what was split there is what it was."""
        split = parts[0].producer()
        if split is not None and split.op_type == "Split" and tuple(split.outputs) == tuple(parts):
            whole = split.inputs[0]
            if whole is not None and split.attributes["axis"].as_int() == axis:
                return whole
        return self.op("Concat", *parts, axis=axis)

    def top_k(self, x: ir.Value, k: int) -> ir.Value:
        """Indices (INT64) of the k largest along the last axis."""
        _, indices = self._tape.op_multi_out("TopK", [x, self.ints(k)], {"axis": -1}, num_outputs=2)
        indices.dtype = ir.DataType.INT64
        return indices

    def cast(self, x: ir.Value, dtype: ir.DataType) -> ir.Value:
        """x in ``dtype``; one node however often it is asked for."""
        if x.dtype == dtype:
            return x
        if (x, dtype) not in self._casts:
            self._casts[x, dtype] = self.op("Cast", x, dtype=dtype, to=int(dtype))
        return self._casts[x, dtype]

    def constant(self, value: npt.ArrayLike, dtype: ir.DataType) -> ir.Value:
        """A small inline initializer; equal constants are shared."""
        array = np.asarray(value, dtype=NUMPY[dtype])
        key = (array.tobytes(), array.shape, dtype)
        if key not in self._constants:
            name = f"const_{len(self._constants)}"
            self._constants[key] = self._initializer(name, ir.tensor(array, name=name), array.shape)
        return self._constants[key]

    def ints(self, *values: int) -> ir.Value:
        """An INT64 vector: shapes, axes."""
        return self.constant(list(values), ir.DataType.INT64)

    def scalar(self, value: float, dtype: ir.DataType) -> ir.Value:
        return self.constant(value, dtype)

    def reshape(self, x: ir.Value, *shape: int) -> ir.Value:
        """0 keeps an axis, −1 is what remains."""
        return self.op("Reshape", x, self.ints(*shape))

    def unsqueeze(self, x: ir.Value, *axes: int) -> ir.Value:
        return self.op("Unsqueeze", x, self.ints(*axes))

    def dim(self, x: ir.Value, axis: int, dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """A scalar: the size of one axis."""
        size = self.op("Shape", x, dtype=ir.DataType.INT64, start=axis, end=axis + 1)
        return self.cast(self.op("Squeeze", size, self.ints(0)), dtype)

    def range(self, stop: ir.Value) -> ir.Value:
        """0 … stop−1 in stop's dtype."""
        assert stop.dtype is not None
        return self.op("Range", self.scalar(0, stop.dtype), stop, self.scalar(1, stop.dtype))

    def has(self, name: str) -> bool:
        return name in self.weights

    def stored(self, name: str) -> ir.Value:
        """The weight as stored, without its scale: a reference into the checkpoint's file."""
        if name not in self._initializers:
            weight = self.weights[name]
            self.used[name] = weight
            self._initializer(name, _tensor(weight), weight.shape)
        return self._initializers[name]

    def weight(self, name: str, dtype: ir.DataType) -> ir.Value:
        """The weight's value in ``dtype``: stored, scaled, cast."""
        value, scale = self.stored(name), self.weights[name].scale
        if scale == 1.0:
            return self.cast(value, dtype)
        scaled = self.op("Mul", self.cast(value, ir.DataType.FLOAT), self.scalar(scale, ir.DataType.FLOAT))
        return self.cast(scaled, dtype)

    def model(
        self,
        output: ir.Value,
        name: str,
        shape: Sequence[str | int],
        metadata: Mapping[str, str],
        probes: Mapping[str, ir.Value] | None = None,
    ) -> ir.Model:
        """The finished model with one fp32 output, and a scalar fp32 one for each probe.

        ONNX Runtime begins with what the last node needs that nobody reads: with probes in reverse, each is taken as soon as
        its value is there, and no layer's values wait for the others'.
        """
        extra: list[ir.Value] = []
        for probe, value in (probes or {}).items():
            value.name, value.shape = probe, ir.Shape(())
            extra.append(value)
        out = self.op("Identity", output)
        out.name, out.dtype, out.shape = name, ir.DataType.FLOAT, ir.Shape(shape)
        last = dict.fromkeys(node for value in reversed(extra) if (node := value.producer()) is not None)
        graph = ir.Graph(
            list(self.inputs.values()),
            [out, *extra],
            nodes=[*(node for node in self._tape.nodes if node not in last), *last],
            initializers=list(self._initializers.values()),
            opset_imports=self._domains,
            name="encoder",
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="bei", metadata_props=dict(metadata))
        RemoveUnusedNodesPass()(model)
        return model

    def _initializer(self, name: str, tensor: ir.TensorProtocol, shape: tuple[int, ...]) -> ir.Value:
        value = ir.val(name, tensor.dtype, shape, const_value=tensor)
        self._initializers[name] = value
        return value


def _tensor(weight: Weight) -> ir.TensorProtocol:
    if weight.data is not None:
        return ir.tensor(weight.data, name=weight.name)
    assert weight.file is not None
    return ir.ExternalTensor(
        weight.file,
        weight.offset,
        weight.nbytes,
        DTYPES[weight.dtype],
        shape=ir.Shape(weight.shape),
        name=weight.name,
        base_dir=weight.folder or "",
    )
