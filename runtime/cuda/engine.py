"""A launch plan on a device: weights once, an arena for intermediates, a CUDA graph a batch size, two batches in flight.

The arena is shared by the batches in flight: the device computes them one after the other, while the host assembles
the next and reads back the last.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bei.cuda_plan import ITEMSIZE, Launch, Operand, Plan, Schedule, Step, Symbol
from bei.errors import EngineError
from bei.runtime.cuda.batch import Batch, Sizes, assemble, layout
from bei.runtime.cuda.device import Addresses, Bytes, Device
from bei.runtime.cuda.weights import upload
from bei.runtime.executor import Output, Row

SLOTS = 2
GRAPHS = 64


@dataclass(slots=True)
class _Slot:
    """The host's side of one batch in flight, page-locked."""

    inputs: Bytes
    output: Bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """A batch that was queued; `Engine.result` waits for it."""

    slot: _Slot
    batch: Batch
    mark: Any


class Engine:
    """One thread at a time may call it, but for `result`, which any may. After an EngineError it can be used again."""

    def __init__(self, device: Device, plan: Plan, folder: Path) -> None:
        self.device, self.plan = device, plan
        device.activate()  # another engine of this thread may have its own device current
        device.load(plan.functions)
        self._weights_block, self._weights = upload(device, plan, folder)
        self._arena: dict[Symbol, int] = {}
        self._capacity: dict[Symbol, int] = dict.fromkeys(("tokens", "rows", *plan.arena), 0)
        self._free = [_Slot(np.empty(0, np.uint8), np.empty(0, np.uint8)) for _ in range(SLOTS)]
        self._inputs, self._input_bytes = 0, 0
        self._graphs: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    # --- one batch

    def submit(self, rows: Sequence[Row]) -> Ticket:
        """Queue a batch. At most two may wait for their `result`. Raises EngineError, InputError."""
        if not self._free:
            raise EngineError(
                f"{self.device.name}: {SLOTS} batches are waiting. Take the result of one first."
            )
        slot = self._free.pop()
        try:
            batch, graph = self.prepare(rows, slot)
            self.device.replay(graph)
            size = batch.sizes.rounded[self.plan.output.rows] * self._row_bytes
            self.device.download(slot.output[:size], self.output_address(batch))
            return Ticket(slot=slot, batch=batch, mark=self.device.mark())
        except BaseException:
            self._free.append(slot)
            raise

    def prepare(self, rows: Sequence[Row], slot: _Slot | None = None) -> tuple[Batch, Any]:
        """Queue a batch's inputs and return it with the graph that computes it. Raises EngineError, InputError."""
        batch = assemble(self.plan, rows)
        self.device.activate()
        slot = slot or self._free[-1]
        self._reserve(batch, slot)
        host = slot.inputs[: batch.data.nbytes]
        host[:] = batch.data.view(np.uint8)
        self.device.upload(self._inputs, host)
        return batch, self._graph(batch.sizes)

    def result(self, ticket: Ticket) -> list[Output] | Output:
        """float32 [B, d], or one [n_i, d] a row for per-token results."""
        self.device.activate()
        try:
            self.device.wait(ticket.mark)
            values = self._values(ticket)
        finally:
            self._free.append(ticket.slot)
        if self.plan.output.rows == "rows":
            return values
        return np.split(values, np.cumsum(ticket.batch.lengths)[:-1])

    def _values(self, ticket: Ticket) -> Output:
        output, sizes = self.plan.output, ticket.batch.sizes
        n = sizes.tokens if output.rows == "tokens" else sizes.rows
        stored = ticket.slot.output[: n * self._row_bytes].view(np.float32)
        return stored.reshape(n, -1)[:, : output.width].copy()

    def run(self, rows: Sequence[Row]) -> list[Output] | Output:
        """Queue and wait."""
        return self.result(self.submit(rows))

    def output_address(self, batch: Batch) -> int:
        """Where the device has a batch's results."""
        return self._address(self.schedule(batch.sizes).output, batch.sizes, {})

    @property
    def input_address(self) -> int:
        """Where the device has a batch's ids."""
        return self._inputs

    @property
    def _row_bytes(self) -> int:
        return self.plan.output.stride * ITEMSIZE[self.plan.output.dtype]

    # --- memory

    def _reserve(self, batch: Batch, slot: _Slot) -> None:
        """Grow what this batch needs more of; graphs hold the addresses, so they go with it."""
        rounded, nbytes = batch.sizes.rounded, batch.data.nbytes
        grow = [symbol for symbol in self.plan.arena if rounded[symbol] > self._capacity[symbol]]
        if grow or nbytes > self._input_bytes:
            self.device.wait(self.device.mark())
            self._forget_graphs()
        for symbol in grow:
            self._grow_arena(symbol, rounded[symbol])
        if nbytes > self._input_bytes:
            self._grow_inputs(nbytes)
        if slot.inputs.size < nbytes:
            slot.inputs = self.device.pinned(self._input_bytes)
        result = self._capacity[self.plan.output.rows] * self._row_bytes
        if slot.output.size < result:
            slot.output = self.device.pinned(result)

    def _grow_arena(self, symbol: Symbol, n: int) -> None:
        self._capacity[symbol] = 0
        if symbol in self._arena:
            self.device.release(self._arena.pop(symbol))
        nbytes = n * self.plan.arena[symbol]
        self._arena[symbol] = self.device.allocate(nbytes)
        self._capacity[symbol] = n
        self.device.clear(self._arena[symbol], nbytes)

    def _grow_inputs(self, nbytes: int) -> None:
        if self._inputs:
            self.device.release(self._inputs)
        self._inputs, self._input_bytes = 0, 0
        size = 2 * nbytes
        self._inputs = self.device.allocate(size)
        self._input_bytes = size

    def schedule(self, sizes: Sizes) -> Schedule:
        """The steps for a batch."""
        return self.plan.schedule(sizes.rounded["tokens"], self.device.clusters)

    def _address(self, operand: Operand, sizes: Sizes, inputs: dict[str, int]) -> int:
        column = operand.column * ITEMSIZE[operand.dtype]
        if operand.place == "weight":
            return self._weights[operand.name] + column
        if operand.place == "input":
            return inputs[operand.name]
        buffer = self.schedule(sizes).buffers[operand.name]
        return self._arena[buffer.rows] + buffer.offset * sizes.rounded[buffer.rows] + column

    # --- graphs

    def _graph(self, sizes: Sizes) -> Any:
        key = sizes.key
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        if len(self._graphs) >= GRAPHS:
            self.device.wait(self.device.mark())
            self.device.forget(self._graphs.popitem(last=False)[1])
        graph = self.device.capture(lambda: self._queue(sizes))
        self._graphs[key] = graph
        return graph

    def _queue(self, sizes: Sizes) -> None:
        for step in self.schedule(sizes).steps:
            self.queue(step, sizes)

    def queue(self, step: Step, sizes: Sizes) -> None:
        """One step of a schedule, over the inputs that are on the device."""
        offsets, _ = layout(self.plan.inputs, sizes.rounded)
        inputs = {name: self._inputs + 4 * offset for name, offset in offsets.items()}

        def at(operand: Operand | None) -> int:
            return 0 if operand is None else self._address(operand, sizes, inputs)

        if isinstance(step, Launch):
            addresses = [at(operand) for operand in step.operands.values() if operand is not None]
            self.device.launch(step, addresses, sizes.rounded)
        else:
            where = Addresses(x=at(step.x), weight=at(step.weight), bias=at(step.bias), out=at(step.out))
            self.device.multiply(step, where, sizes.rounded[step.x.rows])

    def _forget_graphs(self) -> None:
        while self._graphs:
            self.device.forget(self._graphs.popitem()[1])

    # --- life

    def describe(self) -> dict[str, Any]:
        """Device facts, bytes of weights and arena, graphs kept."""
        arena = sum(
            self.plan.arena[symbol] * n for symbol, n in self._capacity.items() if symbol in self.plan.arena
        )
        return {**self.device.facts(), "arena_bytes": arena, "graphs": len(self._graphs)}

    def close(self) -> None:
        """Release everything; further calls are errors."""
        self.device.activate()
        self._forget_graphs()
        self.device.close()
        self._free = []
