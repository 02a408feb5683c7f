"""Buffers on a GPU and the pinned host memory they are filled through, by name, on one stream.

Buffers grow and are kept: a server soon allocates nothing any more. CUDA's context belongs to a thread, so every use
starts with `activate`.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bei.runtime.cuda.device import Bytes
from bei.runtime.cuda.gpu import Gpu


class Memory(Protocol):
    """What an executor needs of a device. Addresses are device addresses; ``stream`` is a stream handle.

    ``moves`` counts the times a buffer came to lie elsewhere: a CUDA graph holds addresses and is void after that.
    """

    stream: int
    moves: int

    def activate(self) -> None:
        """Make the device current in the calling thread."""

    def upload(self, name: str, array: npt.NDArray[Any]) -> int:
        """The address of a device copy of ``array``, complete once the stream gets there."""

    def reserve(self, name: str, nbytes: int) -> int:
        """The address of at least ``nbytes`` bytes; what an earlier, smaller buffer of the name held is gone."""

    def download(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """What the named buffer holds once the stream is done: a copy on the host."""

    def capture(self, work: Callable[[], None]) -> Any:
        """``work``, run once for real, as a CUDA graph. Raises EngineError where it cannot be captured."""

    def replay(self, graph: Any) -> None:
        """Queue a graph."""

    def forget(self, graph: Any) -> None:
        """Free a graph, once the stream is done with it."""

    def size(self) -> int:
        """Bytes held on the device."""

    def close(self) -> None:
        """Give everything back."""


class CudaMemory:
    """`Memory` through the CUDA driver, in the device's primary context (the one TensorRT uses). Errors begin with
    ``subject``."""

    def __init__(self, subject: str, device: int) -> None:
        self._gpu = Gpu(subject, device)
        assert self._gpu.stream.value is not None
        self.stream = self._gpu.stream.value
        self.moves = 0
        self._on_device: dict[str, tuple[int, int]] = {}
        self._on_host: dict[str, Bytes] = {}
        self._read: set[str] = set()

    def activate(self) -> None:
        self._gpu.activate()

    def upload(self, name: str, array: npt.NDArray[Any]) -> int:
        address, staging = self.reserve(name, array.nbytes), self._pinned(name, array.nbytes)
        staging[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if array.nbytes:
            self._gpu.upload(address, staging)
            self._read.add(name)
        return address

    def reserve(self, name: str, nbytes: int) -> int:
        if name in self._on_device and self._on_device[name][1] >= nbytes:
            return self._on_device[name][0]
        if name in self._on_device:
            self._wait()
            self._gpu.release(self._on_device.pop(name)[0])
        self._on_device[name] = (self._gpu.allocate(nbytes), nbytes)
        self.moves += 1
        return self._on_device[name][0]

    def download(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        out = np.empty(shape, dtype)
        staging = self._pinned(f"{name}, back", out.nbytes)
        if out.nbytes:
            self._gpu.download(staging, self._on_device[name][0])
        self._wait()
        out.reshape(-1).view(np.uint8)[:] = staging
        return out

    def capture(self, work: Callable[[], None]) -> Any:
        return self._gpu.capture(work)

    def replay(self, graph: Any) -> None:
        self._gpu.replay(graph)

    def forget(self, graph: Any) -> None:
        self._wait()
        self._gpu.forget(graph)

    def size(self) -> int:
        return sum(nbytes for _, nbytes in self._on_device.values())

    def close(self) -> None:
        self.activate()
        self._on_device, self._on_host = {}, {}
        self._gpu.close()

    def _pinned(self, name: str, nbytes: int) -> Bytes:
        """The named staging buffer, free for writing: the stream has read what it held before. Half as large again as
        asked for, because outgrown ones are only given back at the end."""
        if name in self._read:
            self._wait()
        if name not in self._on_host or self._on_host[name].size < nbytes:
            self._on_host[name] = self._gpu.pinned(nbytes + nbytes // 2)
        return self._on_host[name][:nbytes]

    def _wait(self) -> None:
        """Until the stream is done with everything queued."""
        self._gpu.wait(self._gpu.mark())
        self._read.clear()
