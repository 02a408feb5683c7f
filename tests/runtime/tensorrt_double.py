"""A TensorRT library that computes in host memory and offers nothing that the real one does not."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.runtime.tiny import engine, write_bundle

from bei.errors import EngineError
from bei.gpu import Gpu, gpus
from bei.manifest import EngineRecord, Manifest, decode_manifest
from bei.runtime.executor import Row
from bei.runtime.executors.tensorrt import TensorRtExecutor
from bei.runtime.tensorrt.cache import RuntimeCache

needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs the tensorrt_rtx wheel")
no_gpu = pytest.mark.skipif(not isinstance(gpus(), str), reason="there is a GPU here")

PADDED = ("input_ids", "attention_mask", "token_type_ids")
PACKED = ("input_ids", "token_type_ids", "pad_index", "unpad_index", "attention_mask")


def record(**changes: Any) -> EngineRecord:
    fields = {
        "backend": "tensorrt-rtx",
        "device": "cuda",
        "path": "engines/plan",
        "tool_versions": {"tensorrt-rtx": "1.7.1.116"},
        "compute_capabilities": ("8.0", "8.9"),
    }
    return engine("tensorrt-rtx-sm80+sm89", **(fields | changes))


def gpu(sm: int, name: str = "NVIDIA L4", cuda: tuple[int, int] = (13, 0)) -> Gpu:
    return Gpu(index=0, name=name, sm=sm, memory=24 << 30, cuda=cuda)


@dataclass
class HostMemory:
    stream: int = 7
    moves: int = 0
    recording: list[Callable[[], None]] | None = None
    replayed: int = 0
    refuses: bool = False
    buffers: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    active: int = 0

    def activate(self) -> None:
        self.active += 1

    def upload(self, name: str, array: npt.NDArray[Any]) -> int:
        address = self.reserve(name, array.nbytes)
        self.buffers[name][: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return address

    def reserve(self, name: str, nbytes: int) -> int:
        if name not in self.buffers or self.buffers[name].size < nbytes:
            self.buffers[name] = np.full(nbytes, 0xAA, np.uint8)
            self.moves += 1
        return int(self.buffers[name].ctypes.data)

    def download(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.buffers[name][:size].view(dtype).reshape(shape).copy()

    def capture(self, work: Callable[[], None]) -> Any:
        """Like CUDA's: what was queued while capturing is kept with its addresses."""
        work()
        if self.refuses:
            raise EngineError("cuStreamEndCapture failed")
        self.recording = []
        Context.memory = self
        work()
        graph, self.recording = self.recording, None
        return graph

    def replay(self, graph: Any) -> None:
        self.replayed += 1
        for work in graph:
            work()

    def forget(self, graph: Any) -> None:
        graph.clear()

    def size(self) -> int:
        return sum(buffer.size for buffer in self.buffers.values())

    def close(self) -> None:
        self.buffers.clear()


class Engine:
    """Two profiles: up to 4 rows of 8 tokens, up to 2 rows of 32."""

    num_optimization_profiles = 2

    def __init__(self, inputs: tuple[str, ...], output: str = "sentence_embedding", **context: Any) -> None:
        self._output, self._context, self._contexts = output, context, list["Context"]()
        self._per_token = ("input_ids", "token_type_ids", "unpad_index") if "pad_index" in inputs else ()

    def create_execution_context(self, runtime_config: Any = None) -> "Context":
        self._contexts.append(Context(self._output, **self._context))
        return self._contexts[-1]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        rows, length = ((4, 8), (2, 32))[profile]
        if name in self._per_token:
            return [(1,), (1,), (rows * length,)]
        return [(1, 1), (1, 1), (rows, length)]


class Context:
    """For each row: the sum of its ids, of its token types, and how many tokens it has."""

    memory: HostMemory | None = None
    """Where work is recorded instead of done, while it records."""

    def __init__(self, output: str, per_token: bool = False, works: bool = True) -> None:
        self.output, self.per_token, self.works = output, per_token, works
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profiles: list[int] = []
        self.workspace = (0, 0)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.profiles.append(profile_index)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in ("input_ids", "attention_mask") if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name == self.output
        rows, length = self.shapes["attention_mask"]
        return (rows, length, 3) if self.per_token else (rows, 3)

    def update_device_memory_size_for_shapes(self) -> int:
        return 16 * int(np.prod(self.shapes["attention_mask"]))

    def set_device_memory(self, memory: int, size: int) -> None:
        self.workspace = (memory, size)

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self.memory is not None and self.memory.recording is not None:
            shapes, addresses, workspace = dict(self.shapes), dict(self.addresses), self.workspace
            self.memory.recording.append(lambda: self._replay(shapes, addresses, workspace))
            return self.works
        return self._compute()

    def _replay(self, shapes: Any, addresses: Any, workspace: Any) -> None:
        """The captured batch; another one may have been bound since."""
        assert (self.shapes, self.addresses, self.workspace) == (shapes, addresses, workspace)
        self._compute()

    def _compute(self) -> bool:
        address, size = self.workspace
        assert size == self.update_device_memory_size_for_shapes()
        ctypes.memset(address, 0x55, size)
        ids, types, mask = (self._padded(name) for name in ("input_ids", "token_type_ids", "attention_mask"))
        out = np.stack([ids * mask, types * mask, mask], axis=-1).astype(np.float32)
        out = out if self.per_token else out.sum(axis=1)
        ctypes.memmove(self.addresses[self.output], np.ascontiguousarray(out).ctypes.data, out.nbytes)
        return self.works

    def _padded(self, name: str) -> npt.NDArray[np.int32]:
        values = self._read(name)
        return values if values.ndim == 2 else values[self._read("pad_index")]

    def _read(self, name: str) -> npt.NDArray[np.int32]:
        shape = self.shapes[name]
        raw = ctypes.string_at(self.addresses[name], 4 * int(np.prod(shape)))
        return np.frombuffer(raw, np.int32).reshape(shape)


def bundle_manifest(folder: Path, **changes: Any) -> Manifest:
    written = write_bundle(folder / "bundle", **changes)
    return decode_manifest((written / "manifest.json").read_bytes(), "manifest.json")


def rows(*lengths: int) -> list[Row]:
    rng = np.random.default_rng(0)
    return [
        Row(ids=rng.integers(1, 1000, n, np.int32), types=rng.integers(0, 2, n, np.int32)) for n in lengths
    ]


def answer(batch: list[Row]) -> npt.NDArray[np.float32]:
    return np.array([[r.ids.sum(), r.types.sum(), r.ids.size] for r in batch], np.float32)


def executor(
    folder: Path, inputs: tuple[str, ...] = PADDED, cache: RuntimeCache | None = None, **context: Any
) -> tuple[TensorRtExecutor, Engine, HostMemory]:
    """Without a cache as full TensorRT, with one as TensorRT-RTX."""
    manifest = bundle_manifest(folder)
    fake, memory = Engine(inputs, **context), HostMemory()
    layout = "packed" if "pad_index" in inputs else "padded"
    entry = record(inputs=inputs, layout=layout)
    made = TensorRtExecutor(fake, None, memory, entry, manifest, {"device": "NVIDIA L4"}, cache)
    return made, fake, memory


class LibraryCache:
    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, blob: bytes) -> bool:
        if blob.startswith(b"other GPU"):
            return False
        self.content = blob
        return True

    def serialize(self) -> bytes:
        return self.content + b"+"
