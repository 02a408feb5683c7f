"""The GPUs of this machine, asked of the CUDA driver itself: no CUDA toolkit or binding is needed."""

import ctypes
import glob
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LIBRARIES: tuple[str, ...] = ("libcuda.so.1", "nvcuda.dll")
"""The driver's names; it comes with the display driver, never with a package."""

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, …_MINOR


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """``sm`` such as 89; ``memory`` in bytes; ``cuda`` is the newest CUDA version the driver runs, such as (13, 0)."""

    index: int
    name: str
    sm: int
    memory: int
    cuda: tuple[int, int]


def packaged_library(name: str) -> str | None:
    """The path of a CUDA library from NVIDIA's Python packages, the newest first; ``name`` such as "libnvrtc.so.*"."""
    for folder in sys.path:
        if found := glob.glob(os.path.join(folder, "nvidia", "*", "lib", name)):
            return max(found)
    return None


def driver_version(file: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """The NVIDIA driver's own version, such as "580.65.06"; None where the system does not tell."""
    try:
        found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", file.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found[0] if found else None


class _DriverError(Exception):
    """A driver call said no."""


def gpus(libraries: Sequence[str] = LIBRARIES) -> tuple[Gpu, ...] | str:
    """Every visible GPU in CUDA's order (CUDA_VISIBLE_DEVICES applies), or the reason there is none. Never raises."""
    driver = _open(libraries)
    if driver is None:
        return "no CUDA driver was found (libcuda is missing); install the NVIDIA driver"
    try:
        _call(driver, "cuInit", 0)
        version, count = ctypes.c_int(), ctypes.c_int()
        _call(driver, "cuDriverGetVersion", ctypes.byref(version))
        _call(driver, "cuDeviceGetCount", ctypes.byref(count))
        cuda = (version.value // 1000, version.value % 1000 // 10)
        found = tuple(_gpu(driver, index, cuda) for index in range(count.value))
    except (_DriverError, AttributeError) as error:  # AttributeError: a library without these functions
        return f"the CUDA driver reports no usable GPU ({error})"
    return found or "the CUDA driver reports no GPU (check CUDA_VISIBLE_DEVICES)"


def device_class(device: str, index: int = 0) -> str | None:
    """What an engine of that ``device`` is certified for here: "cpu", or the GPU's "sm89"; None without such a GPU."""
    if device == "cpu":
        return "cpu"
    found = gpus()
    return f"sm{found[index].sm}" if not isinstance(found, str) and index < len(found) else None


def _open(libraries: Sequence[str]) -> ctypes.CDLL | None:
    for library in libraries:
        try:
            return ctypes.CDLL(library)
        except OSError:
            continue
    return None


def _gpu(driver: ctypes.CDLL, index: int, cuda: tuple[int, int]) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    memory, name = ctypes.c_size_t(), ctypes.create_string_buffer(256)
    _call(driver, "cuDeviceGet", ctypes.byref(device), index)
    _call(driver, "cuDeviceGetName", name, len(name), device)
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, device)
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(minor), _MINOR, device)
    _call(driver, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    return Gpu(
        index=index,
        name=name.value.decode(errors="replace"),
        sm=10 * major.value + minor.value,
        memory=memory.value,
        cuda=cuda,
    )


def _call(driver: ctypes.CDLL, function: str, *arguments: object) -> None:
    """Raise _DriverError with CUDA's own name for a code other than 0."""
    code = getattr(driver, function)(*arguments)
    if code != 0:
        text = ctypes.c_char_p()
        driver.cuGetErrorName(code, ctypes.byref(text))
        raise _DriverError(f"{function}: {(text.value or b'error').decode()} {code}")
