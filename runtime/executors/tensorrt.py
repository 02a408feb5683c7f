"""TensorRT and TensorRT-RTX plans: one execution context, buffers sized by the batches that come."""

import contextlib
import mmap
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bei.errors import EngineError
from bei.gpu import Gpu, gpus
from bei.manifest import EngineRecord, Manifest
from bei.runtime import cuda_memory
from bei.runtime.cuda_memory import CudaMemory, Memory
from bei.runtime.executor import Output, Row
from bei.runtime.packing import pack, pad


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """What differs at run time: the module, how to get it, and whether it keeps compiled kernels in a cache."""

    module: str
    install: str
    runtime_cache: bool


LIBRARIES: Mapping[str, Library] = {
    "tensorrt": Library(module="tensorrt", install="pip install tensorrt", runtime_cache=False),
    "tensorrt-rtx": Library(
        module="tensorrt_rtx", install='pip install "bei[tensorrt-rtx]"', runtime_cache=True
    ),
}


def available(record: EngineRecord) -> str | None:
    """None when this machine can run the engine, else the reason. Never raises."""
    library = LIBRARIES[record.backend]
    if not _installed(library.module):
        return f"{record.backend} is not installed ({library.install})"
    if not _installed(cuda_memory.MODULE):
        return "cuda-bindings is not installed (pip install cuda-bindings)"
    found = gpus()
    if isinstance(found, str):
        return found
    if all(_wrong_gpu(record, gpu) is not None for gpu in found):
        return _wrong_gpu(record, found[0])
    return _wrong_version(record, library)


def create(
    bundle_path: Path,
    record: EngineRecord,
    manifest: Manifest,
    *,
    threads: int | None = None,
    device: int = 0,
) -> "TensorRtExecutor":
    """Load the plan onto GPU ``device``. ``threads`` has no meaning on a GPU. Raises EngineError with the reason."""
    gpu = _gpu(record, device)
    trt: Any = import_module(LIBRARIES[record.backend].module)
    memory = CudaMemory(device)
    try:
        engine = load_engine(trt, record, bundle_path / record.path)
        context, cache = _context(trt, engine, record, _cache_file(trt, record, bundle_path, gpu))
    except BaseException:
        memory.close()
        raise
    facts = {"device": gpu.name, "memory": gpu.memory, record.backend: trt.__version__, "sm": gpu.sm}
    return TensorRtExecutor(engine, context, memory, record, manifest, facts, cache)


class TensorRtExecutor:
    """One context on one device; ``engine`` and ``context`` are the library's."""

    concurrency = 1

    def __init__(
        self,
        engine: Any,
        context: Any,
        memory: Memory,
        record: EngineRecord,
        manifest: Manifest,
        facts: Mapping[str, Any],
        cache: "RuntimeCache | None" = None,
    ) -> None:
        self.target = record.target
        self._engine, self._context, self._memory = engine, context, memory
        self._record, self._head, self._facts, self._cache = record, manifest.head, facts, cache
        self._pad_id = manifest.tokenizer.pad_id
        self._profile = 0
        self._closed = False

    def run(self, rows: list[Row]) -> Sequence[Output] | Output:
        """float32 [B, d], or one [n_i, labels] a row for token classification. Raises EngineError."""
        if self._closed:
            raise EngineError(f"{self.target}: the engine is closed")
        self._memory.activate()
        out = self._execute(self._inputs(rows))
        if self._head.task == "token-classify":
            return [out[i, : row.ids.size] for i, row in enumerate(rows)]
        return out

    def describe(self) -> dict[str, Any]:
        return {**self._facts, "buffers": self._memory.size()}

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._memory.activate()
        if self._cache is not None:
            self._cache.save()
        del self._context, self._engine
        self._memory.close()

    def _inputs(self, rows: list[Row]) -> dict[str, npt.NDArray[Any]]:
        """What the graph takes, int32."""
        packed = self._record.layout == "packed"
        arrays = pack(rows) if packed else pad(rows, self._pad_id, np.int32)
        return {name: arrays[name] for name in self._record.inputs}

    def _execute(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Output:
        context, memory = self._context, self._memory
        self._choose_profile(inputs)
        for name, array in inputs.items():
            context.set_input_shape(name, array.shape)
            context.set_tensor_address(name, memory.upload(name, array))
        missing = context.infer_shapes()
        if missing:
            raise EngineError(
                f"{self.target}: the plan wants inputs that were not given: {', '.join(missing)}."
            )
        shape = tuple(context.get_tensor_shape(self._head.output))
        nbytes = 4 * int(np.prod(shape))
        context.set_tensor_address(self._head.output, memory.reserve(self._head.output, nbytes))
        workspace = int(context.update_device_memory_size_for_shapes())
        context.set_device_memory(memory.reserve("workspace", workspace), workspace)
        if not context.execute_async_v3(memory.stream):
            raise EngineError(f"{self.target}: the engine failed for {_shapes(inputs)}.")
        return memory.download(self._head.output, shape, np.float32)

    def _choose_profile(self, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """The first profile that takes these shapes; changing it costs a little, so the present one is tried first."""
        count = int(self._engine.num_optimization_profiles)
        for profile in sorted(range(count), key=lambda index: index != self._profile):
            if all(self._fits(profile, name, array.shape) for name, array in inputs.items()):
                break
        else:
            raise EngineError(
                f"{self.target}: batch {_shapes(inputs)} is larger than the plan was built for."
            )
        if profile != self._profile:
            self._context.set_optimization_profile_async(profile, self._memory.stream)
            self._profile = profile

    def _fits(self, profile: int, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine.get_tensor_profile_shape(name, profile)
        return all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))


class RuntimeCache:
    """Kernels that TensorRT-RTX compiled for this GPU, kept beside the bundle for the next start.

    The library itself rejects a cache from another GPU, version or driver. A cache that cannot be read or written
    only costs the time to compile again.
    """

    def __init__(self, cache: Any, file: Path) -> None:
        self._cache, self._file = cache, file
        with contextlib.suppress(OSError):
            cache.deserialize(file.read_bytes())

    @property
    def handle(self) -> Any:
        """The library's object."""
        return self._cache

    def save(self) -> None:
        """Write it under a temporary name, then rename: a reader never sees half a cache."""
        part = self._file.with_name(self._file.name + ".part")
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(bytes(self._cache.serialize()))
            part.replace(self._file)


def load_engine(trt: Any, record: EngineRecord, plan: Path) -> Any:
    """Deserialise a plan straight from the page cache; raises EngineError with the library's own words."""
    errors: list[str] = []
    runtime = trt.Runtime(_listener(trt, errors))
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        said = " / ".join(dict.fromkeys(errors)) or "no reason was given"
        raise EngineError(f"{record.target}: {record.backend} cannot load {record.path}: {said}")
    return engine


def _listener(trt: Any, errors: list[str]) -> Any:
    class Listener(trt.ILogger):  # type: ignore[misc]
        """Keeps errors."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= 1:
                errors.append(message)

    return Listener()


def _context(
    trt: Any, engine: Any, record: EngineRecord, cache_file: Path
) -> tuple[Any, RuntimeCache | None]:
    """A context whose workspace we provide: sized for the batch at hand, not for the largest the plan allows."""
    config, cache = engine.create_runtime_config(), None
    config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if LIBRARIES[record.backend].runtime_cache:
        cache = RuntimeCache(config.create_runtime_cache(), cache_file)
        config.set_runtime_cache(cache.handle)
    context = engine.create_execution_context(config)
    if context is None:
        raise EngineError(f"{record.target}: {record.backend} cannot create an execution context.")
    return context, cache


def _cache_file(trt: Any, record: EngineRecord, bundle: Path, gpu: Gpu) -> Path:
    """Beside the bundle, one per engine, GPU model and library version."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{record.target} {gpu.name} {trt.__version__}".lower())
    return bundle.with_name(f"{bundle.name}.cache") / f"{name}.bin"


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package is missing or half there
        return False


def _gpu(record: EngineRecord, device: int) -> Gpu:
    """GPU number ``device`` if the engine runs on it."""
    found = gpus()
    if isinstance(found, str):
        raise EngineError(f"{record.target}: cannot run here: {found}.")
    if not 0 <= device < len(found):
        raise EngineError(f"{record.target}: there is no GPU {device} (found {len(found)}).")
    reason = _wrong_gpu(record, found[device])
    if reason is not None:
        raise EngineError(f"{record.target}: cannot run here: {reason}.")
    return found[device]


def _wrong_gpu(record: EngineRecord, gpu: Gpu) -> str | None:
    have = f"{gpu.sm // 10}.{gpu.sm % 10}"
    if have in record.compute_capabilities:
        return None
    built = ", ".join(record.compute_capabilities)
    return f"the plan was built for compute capability {built}, and {gpu.name} has {have}"


def _wrong_version(record: EngineRecord, library: Library) -> str | None:
    """Plans are only read by the version that wrote them."""
    built = record.tool_versions.get(record.backend)
    try:
        here = str(import_module(library.module).__version__)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"{record.backend} cannot be imported ({error})"
    if here == built:
        return None
    return f"the plan was built by {record.backend} {built}, and {here} is installed"


def _shapes(inputs: Mapping[str, npt.NDArray[Any]]) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
