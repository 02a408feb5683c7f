"""Buffers on a GPU and the pinned host memory they are filled through, by name, on one stream.

Buffers grow and are kept: a server soon allocates nothing any more. CUDA's context belongs to a thread, so every use
starts with `activate`.
"""

import ctypes
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bei.errors import EngineError

MODULE = "cuda.bindings.driver"
"""What the buffers are made with (package cuda-bindings); TensorRT itself does not need it."""


class Memory(Protocol):
    """What an executor needs of a device. Addresses are device addresses; ``stream`` is a stream handle."""

    stream: int

    def activate(self) -> None:
        """Make the device current in the calling thread."""

    def upload(self, name: str, array: npt.NDArray[Any]) -> int:
        """The address of a device copy of ``array``, complete once the stream gets there."""

    def reserve(self, name: str, nbytes: int) -> int:
        """The address of at least ``nbytes`` bytes; what an earlier, smaller buffer of the name held is gone."""

    def download(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """What the named buffer holds once the stream is done: a copy on the host."""

    def size(self) -> int:
        """Bytes held on the device."""

    def close(self) -> None:
        """Give everything back."""


class CudaMemory:
    """`Memory` through the CUDA driver, in the device's primary context (the one TensorRT uses)."""

    def __init__(self, device: int) -> None:
        self._cuda: Any = import_module(MODULE)
        self._call("cuInit", 0)
        self._device = self._call("cuDeviceGet", device)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self.activate()
        self._stream = self._call("cuStreamCreate", 1)  # CU_STREAM_NON_BLOCKING
        self.stream = int(self._stream)
        self._on_device: dict[str, tuple[Any, int]] = {}
        self._on_host: dict[str, tuple[Any, int]] = {}

    def activate(self) -> None:
        self._call("cuCtxSetCurrent", self._context)

    def upload(self, name: str, array: npt.NDArray[Any]) -> int:
        nbytes = max(1, array.nbytes)
        address, staging = self._grow(name, nbytes), self._pinned(name, nbytes)
        ctypes.memmove(int(staging), np.ascontiguousarray(array).ctypes.data, array.nbytes)
        self._call("cuMemcpyHtoDAsync", address, int(staging), array.nbytes, self._stream)
        return int(address)

    def reserve(self, name: str, nbytes: int) -> int:
        return int(self._grow(name, max(1, nbytes)))

    def download(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        out = np.empty(shape, dtype)
        address, _ = self._on_device[name]
        staging = self._pinned(name, max(1, out.nbytes))
        self._call("cuMemcpyDtoHAsync", int(staging), address, out.nbytes, self._stream)
        self._call("cuStreamSynchronize", self._stream)
        ctypes.memmove(out.ctypes.data, int(staging), out.nbytes)
        return out

    def size(self) -> int:
        return sum(nbytes for _, nbytes in self._on_device.values())

    def close(self) -> None:
        self.activate()
        self._call("cuStreamSynchronize", self._stream)
        for address, _ in self._on_device.values():
            self._call("cuMemFree", address)
        for staging, _ in self._on_host.values():
            self._call("cuMemFreeHost", staging)
        self._on_device, self._on_host = {}, {}
        self._call("cuStreamDestroy", self._stream)
        self._call("cuDevicePrimaryCtxRelease", self._device)

    def _grow(self, name: str, nbytes: int) -> Any:
        """The named device buffer, replaced by a larger one where needed, after all work on the old one is done."""
        if name in self._on_device and self._on_device[name][1] >= nbytes:
            return self._on_device[name][0]
        if name in self._on_device:
            self._call("cuStreamSynchronize", self._stream)
            self._call("cuMemFree", self._on_device.pop(name)[0])
        self._on_device[name] = (self._call("cuMemAlloc", nbytes), nbytes)
        return self._on_device[name][0]

    def _pinned(self, name: str, nbytes: int) -> Any:
        """The named staging buffer, free for writing: the stream has read what it held before."""
        self._call("cuStreamSynchronize", self._stream)
        if name not in self._on_host or self._on_host[name][1] < nbytes:
            if name in self._on_host:
                self._call("cuMemFreeHost", self._on_host.pop(name)[0])
            self._on_host[name] = (self._call("cuMemAllocHost", nbytes), nbytes)
        return self._on_host[name][0]

    def _call(self, function: str, *arguments: Any) -> Any:
        """A driver call's value; raises EngineError with CUDA's name for a failure."""
        code, *values = getattr(self._cuda, function)(*arguments)
        if int(code) != 0:
            raise EngineError(f"GPU: {function} failed: {code.name}.")
        return values[0] if values else None
