"""TensorRT and TensorRT-RTX plans: a context per profile on one workspace, buffers sized by the batches that come."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bei.errors import EngineError
from bei.gpu import Gpu, gpus
from bei.manifest import EngineRecord, Manifest
from bei.runtime.cuda_memory import CudaMemory, Memory
from bei.runtime.executor import Output, Row
from bei.runtime.packing import pack, pad, unpadded
from bei.runtime.tensorrt.cache import RuntimeCache, cache_files
from bei.runtime.tensorrt.lanes import Graphs, Lane, Shapes
from bei.runtime.tensorrt.library import (
    LIBRARIES,
    installed,
    load_engine,
    wrong_driver,
    wrong_gpu,
    wrong_version,
)


def available(record: EngineRecord) -> str | None:
    """None when this machine can run the engine, else the reason. Never raises."""
    library = LIBRARIES[record.backend]
    if not installed(library.module):
        return f"{record.backend} is not installed; {library.install}"
    found = gpus()
    if isinstance(found, str):
        return found
    fitting = [gpu for gpu in found if wrong_gpu(record, gpu) is None]
    if not fitting:
        return wrong_gpu(record, found[0])
    return wrong_driver(library, fitting[0]) or wrong_version(record)


def create(
    bundle_path: Path,
    record: EngineRecord,
    manifest: Manifest,
    *,
    threads: int | None = None,
    device: int = 0,
) -> "TensorRtExecutor":
    """Load the plan onto GPU ``device``. ``threads`` has no meaning on a GPU. Raises EngineError with the reason."""
    gpu, library = _gpu(record, device), LIBRARIES[record.backend]
    trt: Any = import_module(library.module)
    memory = CudaMemory(record.target, device)
    try:
        engine = load_engine(trt, record, bundle_path / record.path)
        config, cache = runtime_config(
            trt, engine, cache_files(record, bundle_path, gpu, trt.__version__), library.compiles_here
        )
        facts = {"device": gpu.name, "memory": gpu.memory, record.backend: trt.__version__, "sm": gpu.sm}
        return TensorRtExecutor(engine, config, memory, record, manifest, facts, cache)
    except BaseException:
        memory.close()
        raise


def runtime_config(
    trt: Any, engine: Any, files: Sequence[Path], compiles_here: bool
) -> tuple[Any, RuntimeCache | None]:
    """How contexts are made: on a workspace that we provide; where the library can, with its own CUDA graphs and with
    the kernels of earlier starts."""
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if not compiles_here:
        return config, None
    config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    cache = RuntimeCache(config.create_runtime_cache(), files)
    config.set_runtime_cache(cache.handle)
    return config, cache


class TensorRtExecutor:
    """One plan on one device; ``engine`` and ``config`` (its contexts' configuration) are the library's. ``cache`` None:
    the library has none, and leaves CUDA graphs to us."""

    concurrency = 1

    def __init__(
        self,
        engine: Any,
        config: Any,
        memory: Memory,
        record: EngineRecord,
        manifest: Manifest,
        facts: Mapping[str, Any],
        cache: RuntimeCache | None,
    ) -> None:
        self.target = record.target
        self._engine, self._config, self._memory = engine, config, memory
        self._record, self._head, self._facts, self._cache = record, manifest.head, facts, cache
        self._pad_id = manifest.tokenizer.pad_id
        self._lanes = [self._lane(profile) for profile in range(engine.num_optimization_profiles)]
        self._graphs = Graphs(self._lane, memory) if cache is None else None
        self._closed = False

    def run(self, rows: list[Row]) -> Sequence[Output] | Output:
        """float32 [B, d], or one [n_i, labels] a row for token classification. Raises EngineError."""
        if self._closed:
            raise EngineError(f"{self.target}: the engine is closed")
        self._memory.activate()
        longest = max(row.ids.size for row in rows)
        out = self._execute(self._inputs(rows), len(rows) * longest)
        if self._cache is not None:
            self._cache.count()
        return unpadded(out, rows) if self._head.per_token else out

    def describe(self) -> dict[str, Any]:
        """Device, version, bytes of buffers, contexts, CUDA graphs (the library's own: "library"), bytes of its cache."""
        graphs = "library" if self._graphs is None else self._graphs.describe()
        facts = {
            **self._facts,
            "buffers": self._memory.size(),
            "contexts": len(self._lanes),
            "cuda_graphs": graphs,
        }
        return facts if self._cache is None else {**facts, "kernel_cache": self._cache.size}

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._memory.activate()
        if self._cache is not None:
            self._cache.save()
        if self._graphs is not None:
            self._graphs.clear()
        del self._graphs, self._lanes, self._config, self._engine  # contexts before the engine
        self._memory.close()

    def _lane(self, profile: int) -> Lane:
        context = self._engine.create_execution_context(self._config)
        if context is None:
            raise EngineError(f"{self.target}: {self._record.backend} cannot create an execution context.")
        return Lane(self.target, context, profile, self._memory, self._head.output)

    def _inputs(self, rows: list[Row]) -> dict[str, npt.NDArray[Any]]:
        """What the graph takes, int32."""
        packed = self._record.layout == "packed"
        arrays = pack(rows) if packed else pad(rows, self._pad_id, np.int32)
        return {name: arrays[name] for name in self._record.inputs}

    def _execute(self, inputs: Mapping[str, npt.NDArray[Any]], slots: int) -> Output:
        """``slots``: tokens of the batch, padding included."""
        shapes = {name: array.shape for name, array in inputs.items()}
        profile = self._profile(shapes)
        addresses = {name: self._memory.upload(name, array) for name, array in inputs.items()}
        shape = None
        if self._graphs is not None:
            shape = self._graphs.replay(profile, shapes, addresses, slots)
        if shape is None:
            lane = self._lanes[profile]
            shape = lane.bind(shapes, addresses)
            lane.enqueue()
        return self._memory.download(self._head.output, shape, np.float32)

    def _profile(self, shapes: Shapes) -> int:
        """The first profile that takes these shapes: they are ordered from short to long."""
        for profile in range(len(self._lanes)):
            if all(self._fits(profile, name, shape) for name, shape in shapes.items()):
                return profile
        said = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise EngineError(f"{self.target}: batch {said} is larger than the plan was built for.")

    def _fits(self, profile: int, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine.get_tensor_profile_shape(name, profile)
        return all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))


def _gpu(record: EngineRecord, device: int) -> Gpu:
    """GPU number ``device`` if the engine runs on it."""
    found = gpus()
    if isinstance(found, str):
        raise EngineError(f"{record.target}: cannot run here: {found}.")
    if not 0 <= device < len(found):
        raise EngineError(f"{record.target}: there is no GPU {device} (found {len(found)}).")
    reason = wrong_gpu(record, found[device])
    if reason is not None:
        raise EngineError(f"{record.target}: cannot run here: {reason}.")
    return found[device]
