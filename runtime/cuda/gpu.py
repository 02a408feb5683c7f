"""One NVIDIA GPU as a `Device`: driver calls and cuBLASLt on one stream of the primary context."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from ctypes import byref, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any

import numpy as np

from bei.cuda_plan import ITEMSIZE, Box, Function, Launch, Product
from bei.errors import EngineError
from bei.runtime.cuda import driver as cu
from bei.runtime.cuda.cublaslt import WORKSPACE, CublasLt
from bei.runtime.cuda.device import Addresses, Bytes
from bei.runtime.cuda.driver import Driver


class Gpu:
    """Device ``index`` as CUDA counts. Raises EngineError where there is none."""

    def __init__(self, subject: str, index: int = 0) -> None:
        self.subject = subject
        self.driver = Driver(subject)
        self._device = c_int()
        self.driver("cuDeviceGet", byref(self._device), index)
        self._context = self.driver.handle("cuDevicePrimaryCtxRetain", self._device)
        self.activate()
        self.stream = self.driver.handle("cuStreamCreate", cu.NON_BLOCKING)
        text = ctypes.create_string_buffer(256)
        self.driver("cuDeviceGetName", text, 256, self._device)
        self.name = text.value.decode(errors="replace")
        count = c_int()
        self.driver("cuDeviceGetAttribute", byref(count), cu.MULTIPROCESSORS, self._device)
        self._processors = {"processors": count.value}
        self._modules: list[c_void_p] = []
        self._functions: dict[str, tuple[c_void_p, Function]] = {}
        self._clusters: dict[str, int] = {}
        self._allocated: set[int] = set()
        self._pinned: list[c_void_p] = []
        self._lt: CublasLt | None = None

    def activate(self) -> None:
        """Make the context current in the calling thread."""
        self.driver("cuCtxSetCurrent", self._context)

    # --- memory

    def allocate(self, nbytes: int) -> int:
        address = c_ulonglong()
        code = self.driver.status("cuMemAlloc_v2", byref(address), max(1, nbytes))
        if code == cu.OUT_OF_MEMORY:
            free = self.memory()[0]
            raise EngineError(
                f"{self.subject}: out of GPU memory (needs {nbytes >> 20} MiB, {free >> 20} MiB are free on "
                f"{self.name}). Send smaller batches, or free memory on the GPU."
            )
        if code != 0:
            raise self.driver.failure("cuMemAlloc", code)
        self._allocated.add(address.value)
        return address.value

    def release(self, address: int) -> None:
        self._allocated.discard(address)
        self.driver("cuMemFree_v2", address)

    def memory(self) -> tuple[int, int]:
        """Free and total bytes."""
        free, total = c_size_t(), c_size_t()
        self.driver("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def pinned(self, nbytes: int) -> Bytes:
        at = self.driver.handle("cuMemHostAlloc", max(1, nbytes), 0)
        self._pinned.append(at)
        assert at.value is not None
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(at.value))

    def clear(self, address: int, nbytes: int) -> None:
        self.driver("cuMemsetD8Async", address, 0, nbytes, self.stream)

    def upload(self, address: int, source: Bytes) -> None:
        self.driver("cuMemcpyHtoDAsync_v2", address, source.ctypes.data, source.nbytes, self.stream)

    def download(self, target: Bytes, address: int) -> None:
        self.driver("cuMemcpyDtoHAsync_v2", target.ctypes.data, address, target.nbytes, self.stream)

    # --- work

    def load(self, functions: Mapping[str, Function]) -> None:
        for name, function in functions.items():
            module = self.driver.handle("cuModuleLoadData", function.cubin)
            self._modules.append(module)
            handle = self.driver.handle("cuModuleGetFunction", module, function.symbol.encode())
            if function.shared > 48 << 10:
                self.driver("cuFuncSetAttribute", handle, cu.MAX_DYNAMIC_SHARED, function.shared)
            self._functions[name] = (handle, function)

    def launch(self, step: Launch, addresses: Sequence[int], sizes: Mapping[str, int]) -> None:
        form = step.form(sizes)
        handle, function = self._functions[form.function]
        known = {**sizes, **self._processors}
        if any(size.symbol == "clusters" for size in form.grid):
            known["clusters"] = self.clusters(form.function)
        grid = [size.of(known) for size in form.grid] + [1] * (3 - len(form.grid))
        present = (name for name, operand in step.operands.items() if operand is not None)
        values: list[Any] = [
            self._map(step, form.boxes[name], name, address, sizes)
            if name in form.boxes
            else c_ulonglong(address)
            for name, address in zip(present, addresses, strict=True)
        ]
        values += [c_int(sizes[symbol]) for symbol in step.sizes]
        values += [c_ulonglong(0)] * function.scratch
        parameters = (c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        self.driver(
            "cuLaunchKernel", handle, *grid, function.threads, 1, 1, function.shared, self.stream,
            ctypes.cast(parameters, ctypes.POINTER(c_void_p)), None,
        )  # fmt: skip

    def clusters(self, function: str) -> int:
        if function not in self._clusters:
            handle, how = self._functions[function]
            count, config = c_int(), cu.LaunchConfig(how.cluster, 1, 1, how.threads, 1, 1, how.shared)
            self.driver("cuOccupancyMaxActiveClusters", byref(count), handle, byref(config))
            self._clusters[function] = count.value
        return self._clusters[function]

    def _map(
        self, step: Launch, box: Box, name: str, address: int, sizes: Mapping[str, int]
    ) -> "ctypes.Array[c_ulonglong]":
        operand = step.operands[name]
        assert operand is not None
        item = ITEMSIZE[operand.dtype]
        made = cu.tensor_map()
        self.driver(
            "cuTensorMapEncodeTiled", ctypes.addressof(made), cu.MAP_TYPES[operand.dtype], 2, address,
            (c_ulonglong * 2)(operand.width, box.height or sizes[operand.rows]), (c_ulonglong * 1)(operand.stride * item),
            (c_uint * 2)(box.columns, box.rows), (c_uint * 2)(1, 1),
            0, cu.MAP_SWIZZLE[box.swizzle], cu.MAP_PROMOTE_256, 0,
        )  # fmt: skip
        return made

    def multiply(self, step: Product, at: Addresses, rows: int) -> None:
        if self._lt is None:
            self._lt = CublasLt(self.subject, self.stream, self.allocate(WORKSPACE))
        self._lt.multiply(step, at, rows)

    def elapsed(self, start: c_void_p, stop: c_void_p) -> float:
        """Milliseconds between two timing events, both spent."""
        self.driver("cuEventSynchronize", stop)
        took = c_float()
        self.driver("cuEventElapsedTime", byref(took), start, stop)
        for event in (start, stop):
            self.driver("cuEventDestroy_v2", event)
        return took.value

    def capture(self, work: Callable[[], None]) -> c_void_p:
        """Queued once for real first: libraries choose algorithms and load code then, which a capture forbids."""
        work()
        self.driver("cuStreamBeginCapture_v2", self.stream, cu.CAPTURE_MODE_THREAD_LOCAL)
        try:
            work()
        finally:
            graph = c_void_p()
            self.driver("cuStreamEndCapture", self.stream, byref(graph))
        made = self.driver.handle("cuGraphInstantiateWithFlags", graph, 0)
        self.driver("cuGraphDestroy", graph)
        return made

    def replay(self, graph: c_void_p) -> None:
        self.driver("cuGraphLaunch", graph, self.stream)

    def forget(self, graph: c_void_p) -> None:
        self.driver("cuGraphExecDestroy", graph)

    def mark(self) -> c_void_p:
        return self._event(timing=False)

    def _event(self, *, timing: bool) -> c_void_p:
        event = self.driver.handle("cuEventCreate", 0 if timing else cu.DISABLE_TIMING)
        self.driver("cuEventRecord", event, self.stream)
        return event

    def timer(self) -> c_void_p:
        """A mark that `elapsed` can read."""
        return self._event(timing=True)

    def wait(self, mark: c_void_p) -> None:
        self.driver("cuEventSynchronize", mark)
        self.driver("cuEventDestroy_v2", mark)

    # --- life

    def facts(self) -> dict[str, Any]:
        self.activate()
        version = c_int()
        self.driver("cuDriverGetVersion", byref(version))
        free, total = self.memory()
        return {
            "device": self.name,
            "cuda_driver": f"{version.value // 1000}.{version.value % 1000 // 10}",
            "cublaslt": self._lt.version if self._lt else None,
            "memory_total": total,
            "memory_free": free,
        }

    def close(self) -> None:
        self.activate()
        self.driver("cuStreamSynchronize", self.stream)
        if self._lt is not None:
            self._lt.close()
        for module in self._modules:
            self.driver("cuModuleUnload", module)
        for address in list(self._allocated):
            self.release(address)
        for at in self._pinned:
            self.driver("cuMemFreeHost", at)
        self.driver("cuStreamDestroy_v2", self.stream)
        self.driver("cuDevicePrimaryCtxRelease_v2", self._device)
