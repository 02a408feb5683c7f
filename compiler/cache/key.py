"""What decides the content of a bundle, as one hash: builds with the same key give the same bundle.

Not in it: where the checkpoint was found and what the bundle is called (a hit is given both), and what only refuses or
only saves time (`card`, `timing_cache`).
"""

import hashlib
import importlib
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

import bei
from bei.compiler.code_digest import code_digest
from bei.compiler.engines.tensorrt_table import BACKENDS
from bei.compiler.options import BuildOptions
from bei.compiler.target import Target
from bei.errors import InputError
from bei.gpu import gpus
from bei.manifest import Source

FORMAT = 1
"""Of a cache entry; another one is never looked at."""

APART = frozenset(
    {
        "repo",
        "revision",
        "out",
        "targets",
        "policy",
        "calibration",
        "offline",
        "token",
        "card",
        "timing_cache",
    }
)
"""Options that are in the key in another way, or change nothing; any other one is in it."""

ALWAYS = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "tokenizers", "ml-dtypes")
OF_PARITY = ("torch", "transformers", "sentence-transformers")
OF_CUDA = ("triton", "nvidia-cuda-nvrtc", "nvidia-cublas")


def bundle_key(source: Source, options: BuildOptions, targets: Sequence[Target], *, certified: bool) -> str:
    """SHA-256 in hex. ``source`` has the checkpoint's hashes; ``certified``: whether parity runs. Raises InputError."""
    parts = {
        "format": FORMAT,
        "checkpoint": {name: record.sha256 for name, record in source.files.items()},
        "targets": [target.name for target in targets],
        "options": {name: value for name, value in asdict(options).items() if name not in APART},
        "policy": _content(options.policy),
        "calibration": _content(options.calibration),
        "certified": certified,
        "tools": _tools(targets, certified),
        "machine": _machine(targets, certified),
    }
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


def _content(path: Path | None) -> str | None:
    try:
        return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None


def _tools(targets: Sequence[Target], certified: bool) -> dict[str, str]:
    """Everything whose version can show in the result; bei itself by its code, which changes between versions too."""
    names = [*ALWAYS, *(OF_PARITY if certified else ())]
    if any(target.backend == "cuda" for target in targets):
        names += OF_CUDA
    found = {
        "bei": f"{bei.__version__}+{code_digest(Path(bei.__file__).parent)[:16]}",
    }
    found |= {name: number for name in names if (number := _installed(name)) is not None}
    libraries = {BACKENDS[t.backend] for t in targets if t.backend in ("tensorrt", "tensorrt-rtx")}
    return found | {row.name: str(importlib.import_module(row.module).__version__) for row in libraries}


def _machine(targets: Sequence[Target], certified: bool) -> dict[str, Any]:
    """What engines are built for and certified on, where that is this machine's own hardware."""
    looks = any(target.device == "cuda" for target in targets)
    found = gpus() if looks and (certified or any(target.needs_gpu for target in targets)) else ""
    return {
        "architecture": platform.machine(),
        "gpus": [] if isinstance(found, str) else [(gpu.name, gpu.sm) for gpu in found[:1]],
    }


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
