"""Padded [B, L, …] and packed [T, …] batches: what positions, attention and pooling need to know of them."""

from functools import cached_property
from typing import Protocol

import onnx_ir as ir

from bei.compiler.lowering.graph import Graph


class Layout(Protocol):
    """Token-wise values have ``rank`` leading axes."""

    rank: int

    def tokens(self) -> ir.Value:
        """Token ids."""

    def types(self) -> ir.Value:
        """Token types."""

    def mask(self) -> ir.Value:
        """[B, L] 1 for a real token, 0 for padding."""

    def index(self) -> ir.Value:
        """Each token's index in its row: [1, L] or [T]."""

    def counted(self, pad: int) -> ir.Value:
        """RoBERTa's positions, one per token (see EncoderConfig.position_pad)."""

    def slots(self) -> ir.Value:
        """[1, L]: each slot's index in its row."""

    def pad(self, x: ir.Value) -> ir.Value:
        """Token-wise to [B, L, …]."""

    def unpad(self, x: ir.Value, *rest: int) -> ir.Value:
        """[B, L, *rest] to token-wise."""

    def clear(self, x: ir.Value) -> ir.Value:
        """Token-wise fp32 [..., D] with 0 wherever there is padding, whatever was there (also NaN)."""


class Padded:
    """Standard inputs: input_ids, attention_mask[, token_type_ids], all [batch, sequence]."""

    rank = 2

    def __init__(self, g: Graph, index: ir.DataType) -> None:
        self.g, self.dtype = g, index

    def _input(self, name: str) -> ir.Value:
        return self.g.input(name, self.dtype, ("batch", "sequence"))

    def tokens(self) -> ir.Value:
        return self._input("input_ids")

    def types(self) -> ir.Value:
        return self._input("token_type_ids")

    def mask(self) -> ir.Value:
        return self._input("attention_mask")

    @cached_property
    def _index(self) -> ir.Value:
        return self.g.unsqueeze(self.g.range(self.g.dim(self.tokens(), 1, self.dtype)), 0)

    def index(self) -> ir.Value:
        return self._index

    def slots(self) -> ir.Value:
        return self._index

    def counted(self, pad: int) -> ir.Value:
        return count_positions(self.g, self.tokens(), pad)

    def pad(self, x: ir.Value) -> ir.Value:
        return x

    def unpad(self, x: ir.Value, *rest: int) -> ir.Value:
        return x

    def clear(self, x: ir.Value) -> ir.Value:
        zero = self.g.scalar(0, ir.DataType.FLOAT)
        return self.g.op("Where", self._real, x, zero, dtype=ir.DataType.FLOAT)

    @cached_property
    def _real(self) -> ir.Value:
        return self.g.unsqueeze(self.g.cast(self.mask(), ir.DataType.BOOL), 2)


class Packed:
    """All real tokens in a row: input_ids[, token_type_ids] [T], with pad_index [B, L] (the token in each slot; free
    slots hold 0), unpad_index [T] (each token's slot in B·L) and attention_mask [B, L]."""

    rank = 1

    def __init__(self, g: Graph, index: ir.DataType) -> None:
        self.g, self.dtype = g, index

    def _per_token(self, name: str) -> ir.Value:
        return self.g.input(name, self.dtype, ("tokens",))

    def _per_slot(self, name: str) -> ir.Value:
        return self.g.input(name, self.dtype, ("batch", "sequence"))

    def tokens(self) -> ir.Value:
        return self._per_token("input_ids")

    def types(self) -> ir.Value:
        return self._per_token("token_type_ids")

    def mask(self) -> ir.Value:
        return self._per_slot("attention_mask")

    @cached_property
    def _length(self) -> ir.Value:
        return self.g.dim(self.mask(), 1, self.dtype)

    @cached_property
    def _index(self) -> ir.Value:
        return self.g.op("Mod", self._per_token("unpad_index"), self._length)

    def index(self) -> ir.Value:
        return self._index

    @cached_property
    def _slots(self) -> ir.Value:
        return self.g.unsqueeze(self.g.range(self._length), 0)

    def slots(self) -> ir.Value:
        return self._slots

    def counted(self, pad: int) -> ir.Value:
        return self.unpad(count_positions(self.g, self.pad(self.tokens()), pad))

    def pad(self, x: ir.Value) -> ir.Value:
        return self.g.op("Gather", x, self._per_slot("pad_index"), axis=0)

    def unpad(self, x: ir.Value, *rest: int) -> ir.Value:
        flat = self.g.reshape(x, -1, *rest)
        return self.g.op("Gather", flat, self._per_token("unpad_index"), axis=0)

    def clear(self, x: ir.Value) -> ir.Value:
        return x


def count_positions(g: Graph, ids: ir.Value, pad: int) -> ir.Value:
    """cumsum(ids ≠ pad)·(ids ≠ pad) + pad along a row, for ids [B, L]."""
    assert ids.dtype is not None
    real = g.cast(
        g.op("Not", g.op("Equal", ids, g.scalar(pad, ids.dtype), dtype=ir.DataType.BOOL)), ids.dtype
    )
    counted = g.op("Mul", g.op("CumSum", real, g.scalar(1, ir.DataType.INT64)), real)
    return g.op("Add", counted, g.scalar(pad, ids.dtype))
