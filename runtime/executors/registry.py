"""Which module runs which backend. A backend is imported only when an engine of it is asked for.

A backend module has two functions: ``available(record) -> str | None`` (None when this machine can run the engine,
else the reason) and ``create(bundle_path, record, manifest, *, threads, device) -> Executor``.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, cast

from bei.errors import EngineError
from bei.manifest import EngineRecord, Manifest
from bei.runtime.executor import Executor

MODULES = {
    "onnxruntime-cpu": "bei.runtime.executors.onnxruntime",
    "onnxruntime-cuda": "bei.runtime.executors.onnxruntime_cuda",
    "tensorrt": "bei.runtime.executors.tensorrt",
    "tensorrt-rtx": "bei.runtime.executors.tensorrt",
    "cuda": "bei.runtime.executors.cuda",
}


class Backend(Protocol):
    """What a backend module offers."""

    def available(self, record: EngineRecord) -> str | None: ...

    def create(
        self,
        bundle_path: Path,
        record: EngineRecord,
        manifest: Manifest,
        *,
        threads: int | None = None,
        device: int = 0,
    ) -> Executor: ...


def available(record: EngineRecord) -> str | None:
    """None when this machine can run the engine, else the reason why not."""
    if find_spec(_module(record)) is None:
        return f"this version of bei has no executor for {record.backend}"
    return _backend(record).available(record)


def create(
    bundle_path: Path,
    record: EngineRecord,
    manifest: Manifest,
    *,
    threads: int | None = None,
    device: int = 0,
) -> Executor:
    """Start the engine. ``threads``: CPU threads (None: what this process may use); ``device``: GPU index."""
    reason = available(record)
    if reason is not None:
        raise EngineError(f"{record.target}: cannot run here: {reason}")
    return _backend(record).create(bundle_path, record, manifest, threads=threads, device=device)


def _backend(record: EngineRecord) -> Backend:
    return cast(Backend, import_module(_module(record)))


def _module(record: EngineRecord) -> str:
    return MODULES.get(f"{record.backend}-{record.device}") or MODULES[record.backend]
