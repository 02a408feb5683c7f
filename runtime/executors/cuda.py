"""The CUDA engine: a launch plan with its cubins, on the NVIDIA driver and cuBLASLt alone."""

import threading
from pathlib import Path
from typing import Any

from bei.cuda_plan import decode_plan
from bei.errors import EngineError
from bei.gpu import gpus
from bei.manifest import EngineRecord, Manifest
from bei.runtime.cuda.cublaslt import find_library
from bei.runtime.cuda.engine import SLOTS, Engine
from bei.runtime.cuda.gpu import Gpu
from bei.runtime.executor import Output, Row


class CudaExecutor:
    """One engine on one GPU, two batches in flight: while the GPU computes one, a thread assembles the next or reads back
    the last. What is queued is queued by one thread at a time."""

    concurrency = SLOTS

    def __init__(self, engine: Engine, record: EngineRecord) -> None:
        self.target = record.target
        self._engine: Engine | None = engine
        self._queueing = threading.Lock()

    def run(self, rows: list[Row]) -> list[Output] | Output:
        """float32 [B, d], or one [n_i, labels] a row for token classification. Raises EngineError."""
        engine = self._open()
        with self._queueing:
            ticket = engine.submit(rows)
        return engine.result(ticket)

    def describe(self) -> dict[str, Any]:
        return self._open().describe()

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _open(self) -> Engine:
        if self._engine is None:
            raise EngineError(f"{self.target}: the engine is closed")
        return self._engine


def available(record: EngineRecord) -> str | None:
    """None when this machine can run the engine, else the reason."""
    found = gpus()
    if isinstance(found, str):
        return found
    needed = record.compute_capabilities
    have = sorted({f"{gpu.sm // 10}.{gpu.sm % 10}" for gpu in found})
    if not set(needed) & set(have):
        return f"it was compiled for compute capability {', '.join(needed)}, and this machine has {', '.join(have)}"
    if find_library() is None:
        return 'cuBLASLt is not installed (pip install "bei[cuda]")'
    return None


def create(
    bundle_path: Path,
    record: EngineRecord,
    manifest: Manifest,
    *,
    threads: int | None = None,
    device: int = 0,
) -> CudaExecutor:
    """Load the plan and the weights it names onto GPU ``device``. ``threads`` has no meaning here. Raises EngineError."""
    path = bundle_path / record.path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EngineError(f"{record.target}: {path} cannot be read ({error.strerror}).") from None
    plan = decode_plan(data, str(path))
    gpu = Gpu(record.target, device)
    try:
        engine = Engine(gpu, plan, bundle_path)
    except EngineError:
        gpu.close()
        raise
    return CudaExecutor(engine, record)
