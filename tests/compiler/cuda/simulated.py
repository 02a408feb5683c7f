"""A GPU that is not there: memory is one array, kernels are their references, products are NumPy.

Everything above the driver runs as it would on a device: addresses, arena reuse, strides, argument order, uploads.
Memory starts as NaN, so whatever reads a place that nothing wrote is seen.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bei.cuda_plan import ITEMSIZE, DType, Epilogue, Function, Launch, Operand, Plan, Product
from bei.errors import EngineError
from bei.runtime.cuda.device import Addresses

TORCH: dict[DType, torch.dtype] = {
    "f16": torch.float16,
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "i32": torch.int32,
}


class SimulatedDevice:
    """`Device` over host memory; values are rounded to the types that a GPU would store."""

    name = "simulated"

    def __init__(self, plan: Plan, memory: int = 1 << 26) -> None:
        self.plan = plan
        self.memory = torch.full((memory,), 0xFF, dtype=torch.uint8)  # NaN in every float type
        self.allocated: dict[int, int] = {}
        self.clusters_at_once = 66
        self.recording: list[Callable[[], None]] | None = None

    def activate(self) -> None: ...

    def allocate(self, nbytes: int) -> int:
        at = 256
        for start, size in sorted(self.allocated.items()):
            if at + nbytes <= start:
                break
            at = -(-(start + size) // 256) * 256
        if at + nbytes > len(self.memory):
            raise EngineError(f"simulated: out of memory (asked for {nbytes} bytes)")
        self.allocated[at] = nbytes
        self.memory[at : at + nbytes] = 0xFF
        return at

    def release(self, address: int) -> None:
        del self.allocated[address]

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        return np.full(nbytes, 0xFF, np.uint8)

    def clear(self, address: int, nbytes: int) -> None:
        self.memory[address : address + nbytes] = 0

    def upload(self, address: int, source: npt.NDArray[np.uint8]) -> None:
        self.memory[address : address + source.size] = torch.from_numpy(source)

    def download(self, target: npt.NDArray[np.uint8], address: int) -> None:
        target[:] = self.memory[address : address + target.size].numpy()

    def load(self, functions: Mapping[str, Function]) -> None:
        assert functions == self.plan.functions

    def _queue(self, work: Callable[[], None]) -> None:
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def clusters(self, function: str) -> int:
        assert self.plan.functions == {} or function in self.plan.functions
        return self.clusters_at_once

    def launch(self, step: Launch, addresses: Sequence[int], sizes: Mapping[str, int]) -> None:
        self._queue(lambda: self._launch(step, list(addresses), dict(sizes)))

    def _launch(self, step: Launch, addresses: list[int], sizes: dict[str, int]) -> None:
        where = iter(addresses)
        operands = {
            name: None if operand is None else self._matrix(operand, next(where), sizes)
            for name, operand in step.operands.items()
        }
        results = import_module(f"bei.kernels.{step.op}").reference(**operands, **step.attrs)
        for name in step.writes:
            target = operands[name]
            assert target is not None
            target.copy_(results[name])

    def multiply(self, step: Product, at: Addresses, rows: int) -> None:
        self._queue(lambda: self._multiply(step, at, rows))

    def _multiply(self, step: Product, at: Addresses, rows: int) -> None:
        sizes: dict[str, int] = {step.x.rows: rows}
        w = self._matrix(step.weight, at.weight, sizes).float()
        y = self._matrix(step.x, at.x, sizes).float() @ (w if step.transposed else w.T)
        if step.bias is not None:
            y = y + self._matrix(step.bias, at.bias, sizes).float()
        y = _epilogue(y, step.epilogue)
        self._matrix(step.out, at.out, sizes).copy_(y)

    def _matrix(self, operand: Operand, address: int, sizes: Mapping[str, int]) -> torch.Tensor:
        """A view of memory. A weight has the rows that the plan's count gives it."""
        rows = sizes.get(operand.rows, 1)
        if operand.place == "weight":
            rows = self.plan.weights[operand.name].count // operand.width
        item = ITEMSIZE[operand.dtype]
        odd = (
            operand.name in ("out", "scale") or operand.column * item % 16
        )  # parts and columns begin where they may
        aligned = item if odd else 16
        assert address % aligned == 0, f"{operand.name} at {address} is not {aligned}-byte aligned"
        flat = self.memory[address : address + ((rows - 1) * operand.stride + operand.width) * item]
        return flat.view(TORCH[operand.dtype]).as_strided((rows, operand.width), (operand.stride, 1))

    def capture(self, work: Callable[[], None]) -> list[Callable[[], None]]:
        self.recording = []
        work()
        graph, self.recording = self.recording, None
        return graph

    def replay(self, graph: list[Callable[[], None]]) -> None:
        for work in graph:
            work()

    def forget(self, graph: list[Callable[[], None]]) -> None:
        graph.clear()

    def mark(self) -> Any: ...

    def wait(self, mark: Any) -> None: ...

    def facts(self) -> dict[str, Any]:
        return {"device": self.name}

    def close(self) -> None: ...


class LateDevice(SimulatedDevice):
    """Nothing is done before somebody waits for it, as if the device were slow: whatever a batch in flight still needs
    must be left alone until then. Any thread may wait."""

    def __init__(self, plan: Plan, memory: int = 1 << 26) -> None:
        super().__init__(plan, memory)
        self.queue: list[Callable[[], None]] = []
        self.doing = threading.Lock()

    def clear(self, address: int, nbytes: int) -> None:
        self._later(lambda: SimulatedDevice.clear(self, address, nbytes))

    def upload(self, address: int, source: npt.NDArray[np.uint8]) -> None:
        self._later(lambda: SimulatedDevice.upload(self, address, source))

    def download(self, target: npt.NDArray[np.uint8], address: int) -> None:
        self._later(lambda: SimulatedDevice.download(self, target, address))

    def replay(self, graph: list[Callable[[], None]]) -> None:
        steps = list(graph)  # a graph may be forgotten once the device is through with it
        self._later(lambda: SimulatedDevice.replay(self, steps))

    def _queue(self, work: Callable[[], None]) -> None:
        if self.recording is None:
            self._later(work)
        else:
            self.recording.append(work)

    def _later(self, work: Callable[[], None]) -> None:
        self.queue.append(work)

    def mark(self) -> int:
        return len(self.queue)

    def wait(self, mark: Any) -> None:
        """Everything up to the mark; marks count from the beginning."""
        with self.doing:
            while self.done < mark:
                self.queue[self.done]()
                self.done += 1

    done = 0


def _epilogue(y: torch.Tensor, epilogue: Epilogue) -> torch.Tensor:
    if epilogue == "relu":
        return y.relu()
    return torch.nn.functional.gelu(y, approximate="tanh") if epilogue == "gelu_tanh" else y
