"""The CUDA driver through ctypes: the dozen calls an engine makes. The driver comes with the display driver.

A binding package would take longer to import than a small engine takes to start.
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any

from bei.cuda_plan import DType
from bei.errors import EngineError
from bei.gpu import LIBRARIES
from bei.runtime.cuda.failure import failure

CAPTURE_MODE_THREAD_LOCAL = 1
MAX_DYNAMIC_SHARED = 8
OUT_OF_MEMORY = 2
NON_BLOCKING = 1
DISABLE_TIMING = 2
MULTIPROCESSORS = 16
MAP_TYPES: dict[DType, int] = {"i32": 3, "f16": 6, "f32": 7, "bf16": 9}
MAP_SWIZZLE = {64: 2, 128: 3}
MAP_PROMOTE_256 = 3

_U, _P, _PP = c_uint, c_void_p, POINTER(c_void_p)
_ADDRESS, _ADDRESSES = c_ulonglong, POINTER(c_ulonglong)
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (_U,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (_PP, c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (_P,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (_ADDRESSES, c_size_t),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemHostAlloc": (_PP, c_size_t, _U),
    "cuMemFreeHost": (_P,),
    "cuMemsetD8Async": (_ADDRESS, ctypes.c_ubyte, c_size_t, _P),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, _P, c_size_t, _P),
    "cuMemcpyDtoHAsync_v2": (_P, _ADDRESS, c_size_t, _P),
    "cuModuleLoadData": (_PP, c_char_p),
    "cuModuleUnload": (_P,),
    "cuModuleGetFunction": (_PP, _P, c_char_p),
    "cuFuncSetAttribute": (_P, c_int, c_int),
    "cuLaunchKernel": (_P, _U, _U, _U, _U, _U, _U, _U, _P, _PP, _PP),
    "cuOccupancyMaxActiveClusters": (POINTER(c_int), _P, _P),
    "cuTensorMapEncodeTiled": (
        _P, c_int, _U, _ADDRESS, _ADDRESSES, _ADDRESSES, POINTER(_U), POINTER(_U), c_int, c_int, c_int, c_int,
    ),
    "cuStreamCreate": (_PP, _U),
    "cuStreamDestroy_v2": (_P,),
    "cuStreamSynchronize": (_P,),
    "cuStreamBeginCapture_v2": (_P, c_int),
    "cuStreamEndCapture": (_P, _PP),
    "cuGraphInstantiateWithFlags": (_PP, _P, c_ulonglong),
    "cuGraphLaunch": (_P, _P),
    "cuGraphExecDestroy": (_P,),
    "cuGraphDestroy": (_P,),
    "cuEventCreate": (_PP, _U),
    "cuEventRecord": (_P, _P),
    "cuEventSynchronize": (_P,),
    "cuEventElapsedTime": (POINTER(c_float), _P, _P),
    "cuEventDestroy_v2": (_P,),
}  # fmt: skip


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig: blocks of the grid, threads of a block, its bytes of shared memory."""

    _fields_ = (
        *((f"grid_{axis}", c_uint) for axis in "xyz"),
        *((f"block_{axis}", c_uint) for axis in "xyz"),
        ("shared", c_uint),
        ("stream", c_void_p),
        ("attributes", c_void_p),
        ("attribute_count", c_uint),
    )


def tensor_map() -> "ctypes.Array[c_ulonglong]":
    """Room for a CUtensorMap: 128 bytes at a multiple of 64, as the driver wants it."""
    room = (c_ulonglong * 24)()
    made = (c_ulonglong * 16).from_buffer(room, -ctypes.addressof(room) % 64)
    return made  # keeps ``room`` alive


class Driver:
    """Typed calls that raise EngineError with CUDA's own name for a failure, EngineLost where the context is dead."""

    def __init__(self, subject: str, libraries: Sequence[str] = LIBRARIES) -> None:
        self.subject = subject
        library = _open(libraries)
        if library is None:
            raise EngineError(
                f"{subject}: no CUDA driver was found (libcuda is missing). Install the NVIDIA driver."
            )
        self._library: Any = library
        self._functions = {}
        for name, types in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = types, c_int
            self._functions[name] = function
        self("cuInit", 0)

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call a driver function. Raises EngineError."""
        code = self._functions[name](*arguments)
        if code != 0:
            raise self.failure(name, code)

    def status(self, name: str, *arguments: Any) -> int:
        """Call a driver function and return its code."""
        return int(self._functions[name](*arguments))

    def failure(self, function: str, code: int) -> EngineError:
        """The error for a call of ``function`` that returned ``code``, not 0: CUDA's name and text for it."""
        name, text = c_char_p(), c_char_p()
        self._library.cuGetErrorName(code, byref(name))
        self._library.cuGetErrorString(code, byref(text))
        reason = f"{(name.value or b'unknown').decode()} ({code}, {(text.value or b'').decode()})"
        return failure(code, f"{self.subject}: {function} failed: {reason}.")

    def handle(self, name: str, *arguments: Any) -> c_void_p:
        """Call a function whose first parameter returns a handle."""
        made = c_void_p()
        self(name, byref(made), *arguments)
        return made


def _open(libraries: Sequence[str]) -> ctypes.CDLL | None:
    for library in libraries:
        try:
            return ctypes.CDLL(library)
        except OSError:
            continue
    return None
