"""What differs at run time between TensorRT and TensorRT-RTX, why a plan does not run here, and loading one."""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bei.errors import EngineError
from bei.gpu import Gpu
from bei.manifest import EngineRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """``module`` is imported; ``package`` is what pip calls it, before the CUDA version it is made for.

    ``compiles_here``: kernels are compiled on the GPU that runs them. Such a library keeps them in a cache that can be
    stored, and captures CUDA graphs by itself; with the other one a plan is final, and graphs are ours to capture.
    """

    module: str
    package: str
    install: str
    compiles_here: bool


LIBRARIES: Mapping[str, Library] = {
    "tensorrt": Library(
        module="tensorrt", package="tensorrt", install="pip install tensorrt", compiles_here=False
    ),
    "tensorrt-rtx": Library(
        module="tensorrt_rtx",
        package="tensorrt-rtx",
        install='pip install "bei[tensorrt-rtx]"',
        compiles_here=True,
    ),
}

CUDA_VERSIONS = (12, 13)
"""That the libraries' packages are made for, each in its own: tensorrt-rtx-cu12, tensorrt-rtx-cu13."""

DIAGNOSES: Mapping[str, str] = {
    "VERSION_MISMATCH": "it was built by another version of the library",
    "UNSUPPORTED_CC": "it was built for another compute capability",
    "OLD_CUDA_DRIVER": "the NVIDIA driver is too old; update it",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old; update it",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little free memory",
    "MALFORMED_ENGINE": "it is no plan of this library, or damaged",
    "CUDA_ERROR": "the NVIDIA driver does not answer",
}
"""TensorRT-RTX's words for why a plan is not valid here, in ours."""


def installed(module: str) -> bool:
    """Whether ``module`` could be imported, without importing it."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package is missing or half there
        return False


def wrong_gpu(record: EngineRecord, gpu: Gpu) -> str | None:
    """Why the plan does not run on ``gpu``, None when it does."""
    have = f"{gpu.sm // 10}.{gpu.sm % 10}"
    if have in record.compute_capabilities:
        return None
    built = ", ".join(record.compute_capabilities)
    return f"the plan was built for compute capability {built}, and {gpu.name} has {have}"


def wrong_driver(library: Library, gpu: Gpu) -> str | None:
    """Why the installed library does not run on this driver, None when it does."""
    needs = min((v for v in CUDA_VERSIONS if _has_package(f"{library.package}-cu{v}")), default=0)
    if gpu.cuda[0] >= needs:
        return None
    runs = ".".join(map(str, gpu.cuda))
    return (
        f"{library.package}-cu{needs} is installed, and the NVIDIA driver runs CUDA up to {runs}; "
        f"update the driver, or install {library.package}-cu{gpu.cuda[0]}"
    )


def wrong_version(record: EngineRecord) -> str | None:
    """Plans are only read by the version that wrote them, or, where they were built so, by later ones too."""
    built, here = record.tool_versions.get(record.backend), library_version(record.backend)
    if here is None:
        module = LIBRARIES[record.backend].module
        return f"{record.backend} cannot be imported; see what python -c 'import {module}' says"
    if here == built or (record.version_compatible and built is not None and _later(here, built)):
        return None
    return (
        f"the plan was built by {record.backend} {built}, and {here} is installed; "
        f"install {built}, or build the bundle again"
    )


def _later(here: str, built: str) -> bool:
    """Versions are numbers with dots; anything else is not known to be later."""
    try:
        return tuple(map(int, here.split("."))) > tuple(map(int, built.split(".")))
    except ValueError:
        return False


def library_version(backend: str) -> str | None:
    """The version of the library that can be imported here, None where none can."""
    try:
        return str(import_module(LIBRARIES[backend].module).__version__)
    except (ImportError, OSError, RuntimeError, AttributeError):
        return None


def load_engine(trt: Any, record: EngineRecord, plan: Path) -> Any:
    """Deserialise a plan straight from the page cache; raises EngineError with the library's own words."""
    errors: list[str] = []
    runtime = trt.Runtime(_listener(trt, errors))
    if record.version_compatible:
        runtime.engine_host_code_allowed = True  # such a plan brings the runtime of its version with it
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        engine = runtime.deserialize_cuda_engine(data)
        why = [] if engine is not None else _diagnose(trt, runtime, data)
    if engine is None:
        said = "; ".join([*why, " / ".join(dict.fromkeys(errors))]) or "no reason was given"
        raise EngineError(f"{record.target}: {record.backend} cannot load {record.path}: {said}")
    return engine


def _diagnose(trt: Any, runtime: Any, data: mmap.mmap) -> list[str]:
    """What the library says about a plan it cannot load, where it can say it (flags of a bit mask)."""
    if not hasattr(runtime, "get_engine_validity"):
        return []
    _, flags = runtime.get_engine_validity(data[: runtime.engine_header_size])
    known = trt.EngineInvalidityDiagnostics.__members__
    return [DIAGNOSES.get(name, name) for name, flag in known.items() if int(flags) & int(flag)]


def _listener(trt: Any, errors: list[str]) -> Any:
    class Listener(trt.ILogger):  # type: ignore[misc]
        """Keeps errors."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= 1:
                errors.append(message)

    return Listener()


def _has_package(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
