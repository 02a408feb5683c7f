"""What this machine is and what is installed on it. Nothing here imports a backend: versions come from the packages'
metadata, the GPU's facts from the driver.
"""

import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import msgspec

import bei
from bei.errors import EngineError
from bei.gpu import Gpu, driver_version, gpus
from bei.runtime.cpu import usable_cpus
from bei.runtime.cuda.gpu import Gpu as OpenGpu

PACKAGES: Mapping[str, Sequence[str]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "cuBLASLt": ("nvidia-cublas", "nvidia-cublas-cu13", "nvidia-cublas-cu12"),
    "triton": ("triton",),
    "NVRTC": ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu13", "nvidia-cuda-nvrtc-cu12"),
    "torch": ("torch",),
    "transformers": ("transformers",),
    "sentence-transformers": ("sentence-transformers",),
    "tokenizers": ("tokenizers",),
    "polygraphy": ("polygraphy",),
}
"""What decides what can be done here, and the packages that bring it."""

MEMORY = Path("/proc/meminfo")


class _Data(msgspec.Struct, frozen=True, kw_only=True):
    """Immutable; encodes as JSON."""


class Card(_Data, frozen=True, kw_only=True):
    """A GPU. ``sm`` such as 89; bytes of memory, ``free`` None where the driver does not tell."""

    index: int
    name: str
    sm: int
    memory: int
    free: int | None


class Machine(_Data, frozen=True, kw_only=True):
    """``driver`` is the NVIDIA driver's version, ``cuda`` the newest CUDA it runs; ``no_gpu`` why there are no ``gpus``.

    ``packages``: version of each of `PACKAGES`, None for what is not installed. Memory in bytes.
    """

    bei: str
    python: str
    system: str
    cpus: int
    memory: int | None
    memory_free: int | None
    driver: str | None
    cuda: str | None
    gpus: tuple[Card, ...]
    no_gpu: str | None
    packages: dict[str, str | None]


def look(find: Callable[[], tuple[Gpu, ...] | str] = gpus) -> Machine:
    """This machine, now. Never raises."""
    found = find()
    cards = () if isinstance(found, str) else found
    total, free = _memory()
    return Machine(
        bei=bei.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}" if sys.platform != "linux" else _linux(),
        cpus=usable_cpus(),
        memory=total,
        memory_free=free,
        driver=driver_version(),
        cuda=".".join(map(str, cards[0].cuda)) if cards else None,
        gpus=tuple(
            Card(index=gpu.index, name=gpu.name, sm=gpu.sm, memory=gpu.memory, free=_free(gpu))
            for gpu in cards
        ),
        no_gpu=found if isinstance(found, str) else None,
        packages={name: _version(packages) for name, packages in PACKAGES.items()},
    )


def _linux() -> str:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        name = "Linux"
    return f"{name}, {platform.machine()}"


def _memory(file: Path = MEMORY) -> tuple[int | None, int | None]:
    """Total and available bytes, within what a container may use of them."""
    try:
        lines = dict(line.split(":", 1) for line in file.read_text().splitlines())
        total, free = (1024 * int(lines[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return None, None
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # no cgroup v2, or "max": unlimited
        return total, free
    return min(total, limit), max(0, min(free, limit - used))


def _free(gpu: Gpu) -> int | None:
    """Asking makes a context on the GPU for a moment."""
    try:
        opened = OpenGpu("bei-doctor", gpu.index)
    except EngineError:
        return None
    try:
        return opened.memory()[0]
    except EngineError:
        return None
    finally:
        opened.close()


def _version(packages: Sequence[str]) -> str | None:
    for package in packages:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None
