"""The seam between the engine and a GPU: memory, launches and products on one stream. Tests simulate it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bei.cuda_plan import Function, Launch, Product

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Addresses:
    """Where a product's operands are; ``bias`` is 0 where there is none."""

    x: int
    weight: int
    bias: int
    out: int


class Device(Protocol):
    """Work is queued in order; addresses are integers. Every method raises EngineError when the driver says no."""

    name: str

    def activate(self) -> None:
        """Make the device current in the calling thread; every thread that queues work needs it."""

    def allocate(self, nbytes: int) -> int:
        """Device memory, at least 256-byte aligned. Raises EngineError naming what was asked and what is free."""

    def release(self, address: int) -> None:
        """Give memory back."""

    def pinned(self, nbytes: int) -> Bytes:
        """Page-locked host memory, valid until the device is closed."""

    def clear(self, address: int, nbytes: int) -> None:
        """Queue: set to 0."""

    def upload(self, address: int, source: Bytes) -> None:
        """Queue: copy from pinned memory, which must stay as it is until then."""

    def download(self, target: Bytes, address: int) -> None:
        """Queue: copy to pinned memory."""

    def load(self, functions: Mapping[str, Function]) -> None:
        """Make a plan's kernels callable by name."""

    def clusters(self, function: str) -> int:
        """How many of a loaded kernel's clusters of blocks run at once."""

    def launch(self, step: Launch, addresses: Sequence[int], sizes: Mapping[str, int]) -> None:
        """Queue a kernel; ``addresses`` of its operands that are not None, in order."""

    def multiply(self, step: Product, at: Addresses, rows: int) -> None:
        """Queue a product over ``rows`` rows."""

    def capture(self, work: Callable[[], None]) -> Any:
        """A graph of what ``work`` queues, not run yet."""

    def replay(self, graph: Any) -> None:
        """Queue a graph."""

    def forget(self, graph: Any) -> None:
        """Free a graph."""

    def mark(self) -> Any:
        """A mark after everything queued so far."""

    def wait(self, mark: Any) -> None:
        """Block until the stream has reached a mark; then the mark is spent."""

    def facts(self) -> dict[str, Any]:
        """Device name, driver and library versions, memory."""

    def close(self) -> None:
        """Release everything."""
