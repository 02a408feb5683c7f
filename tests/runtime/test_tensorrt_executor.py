"""The TensorRT executor: refusals with their reasons, and everything around the library's own execution.

Without a GPU the real library is used up to where it asks for the driver; behind that point stands a context that
computes in host memory and offers nothing that the real one does not.
"""

import ctypes
import sys
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
from bei.runtime.executors import tensorrt
from bei.runtime.executors.tensorrt import TensorRtExecutor, available
from bei.runtime.tensorrt import cache as cache_module
from bei.runtime.tensorrt import lanes, library
from bei.runtime.tensorrt.cache import RuntimeCache, cache_files
from bei.runtime.tensorrt.library import load_engine

INSTALLED = find_spec("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(not INSTALLED, reason="needs the tensorrt_rtx wheel")
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


# --- may it run here?


@no_gpu
@needs_rtx
def test_without_a_driver_the_reason_is_the_driver() -> None:
    assert available(record()) == ("no CUDA driver was found (libcuda is missing); install the NVIDIA driver")


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_missing_library_is_the_reason(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library.LIBRARIES[backend].module, None)
    reason = available(record(backend=backend))
    assert reason is not None
    assert reason.startswith(f"{backend} is not installed; pip install ")


@needs_rtx
def test_the_wrong_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "gpus", lambda: (gpu(90, "NVIDIA H100"),))
    assert available(record()) == (
        "the plan was built for compute capability 8.0, 8.9, and NVIDIA H100 has 9.0"
    )


@needs_rtx
def test_the_wrong_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "gpus", lambda: (gpu(89),))
    reason = available(record(tool_versions={"tensorrt-rtx": "1.6.0.1"}))
    assert reason is not None
    assert "built by tensorrt-rtx 1.6.0.1" in reason
    assert "install 1.6.0.1, or build the bundle again" in reason


@needs_rtx
def test_a_driver_older_than_the_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "gpus", lambda: (gpu(89, cuda=(12, 4)),))
    assert available(record()) == (
        "tensorrt-rtx-cu13 is installed, and the NVIDIA driver runs CUDA up to 12.4; "
        "update the driver, or install tensorrt-rtx-cu12"
    )


@needs_rtx
def test_the_right_gpu_and_version_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt_rtx

    monkeypatch.setattr(tensorrt, "gpus", lambda: (gpu(90), gpu(120), gpu(89)))
    assert available(record(tool_versions={"tensorrt-rtx": tensorrt_rtx.__version__})) is None


def test_another_device_than_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tensorrt, "gpus", lambda: (gpu(89), gpu(90, "NVIDIA H100")))
    manifest = bundle_manifest(tmp_path)
    for device, says in ((2, r"there is no GPU 2 \(found 2\)"), (1, "NVIDIA H100 has 9.0")):
        with pytest.raises(EngineError, match=says):
            tensorrt.create(tmp_path, record(), manifest, device=device)


@no_gpu
@needs_rtx
def test_the_real_library_says_why_it_cannot_load(tmp_path: Path) -> None:
    import tensorrt_rtx

    (tmp_path / "plan").write_bytes(b"not a plan" * 100)
    with pytest.raises(
        EngineError, match=r"sm89: tensorrt-rtx cannot load .*: it is no plan of this library, or damaged; \S"
    ):
        load_engine(tensorrt_rtx, record(), tmp_path / "plan")


# --- running, with host memory in place of the device's


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


@needs_rtx
def test_the_stand_ins_offer_only_what_the_library_does() -> None:
    import tensorrt_rtx as trt

    public = {name for name in vars(Context) if not name.startswith("_")} - {"memory"}
    assert public <= set(dir(trt.IExecutionContext))
    assert {name for name in vars(Engine) if not name.startswith("_")} <= set(dir(trt.ICudaEngine))


def test_padded_rows(tmp_path: Path) -> None:
    run, _, memory = executor(tmp_path)
    for batch in (rows(3, 8, 1), rows(2), rows(5, 6, 7, 8)):
        np.testing.assert_array_equal(run.run(batch), answer(batch))
    assert memory.active == 3
    said = {"device": "NVIDIA L4", "buffers": memory.size(), "contexts": 2, "cuda_graphs": "0"}
    assert run.describe() == said


def test_packed_rows(tmp_path: Path) -> None:
    run, _, _ = executor(tmp_path, PACKED)
    for batch in (rows(3, 8, 1), rows(2), rows(5, 6, 7, 8)):
        np.testing.assert_array_equal(run.run(batch), answer(batch))


def test_results_outlive_the_next_call(tmp_path: Path) -> None:
    run, _, _ = executor(tmp_path)
    first, second = rows(3, 8), rows(4, 2, 1)
    kept = run.run(first)
    run.run(second)
    np.testing.assert_array_equal(kept, answer(first))


def test_each_profile_has_a_context_and_all_share_one_workspace(tmp_path: Path) -> None:
    run, engine, memory = executor(tmp_path)
    for lengths in ((8, 8, 8), (20, 2), (5, 5), (1, 1, 1)):
        batch = rows(*lengths)
        np.testing.assert_array_equal(run.run(batch), answer(batch))
    assert [context.profiles for context in engine._contexts] == [[0], [1]]
    assert {context.workspace[0] for context in engine._contexts} == {
        int(memory.buffers["workspace"].ctypes.data)
    }
    assert memory.buffers["workspace"].size == 16 * 2 * 20  # the largest batch that came


# --- CUDA graphs, where the library leaves them to us


def test_a_shape_that_keeps_coming_is_replayed_from_a_context_of_its_own(tmp_path: Path) -> None:
    run, engine, memory = executor(tmp_path)
    for turn in range(lanes.GRAPH_AFTER + 2):
        batch = rows(3 + turn % 2, 8)  # [2, 8], its content changing
        np.testing.assert_array_equal(run.run(batch), answer(batch))
        other = rows(4)
        np.testing.assert_array_equal(run.run(other), answer(other))
    assert memory.replayed == 4
    assert len(engine._contexts) == 2 + 2
    assert run.describe()["cuda_graphs"] == "2"


def test_graphs_are_made_again_when_a_buffer_has_moved(tmp_path: Path) -> None:
    run, _, memory = executor(tmp_path)
    for _ in range(lanes.GRAPH_AFTER + 1):
        run.run(rows(3, 8))
    assert (memory.replayed, run.describe()["cuda_graphs"]) == (1, "1")
    run.run(rows(30, 30))  # needs larger buffers
    batch = rows(5, 8)
    np.testing.assert_array_equal(run.run(batch), answer(batch))
    assert memory.replayed == 1
    np.testing.assert_array_equal(run.run(batch), answer(batch))
    assert memory.replayed == 2


def test_only_so_many_graphs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "GRAPHS", 2)
    monkeypatch.setattr(lanes, "GRAPH_AFTER", 1)
    run, _, memory = executor(tmp_path)
    run.run(rows(8, 8, 8, 8))  # buffers as large as they get here
    for length in (1, 2, 3, 3, 1):
        batch = rows(length)
        np.testing.assert_array_equal(run.run(batch), answer(batch))
    assert (memory.replayed, run.describe()["cuda_graphs"]) == (1, "2")


def test_large_batches_get_no_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "GRAPH_TOKENS", 15)
    run, _, _ = executor(tmp_path)
    for _ in range(lanes.GRAPH_AFTER + 1):
        run.run(rows(8, 8))
    assert run.describe()["cuda_graphs"] == "0"


def test_what_cannot_be_captured_runs_without_a_graph(tmp_path: Path) -> None:
    run, _, memory = executor(tmp_path)
    memory.refuses = True
    for _ in range(lanes.GRAPH_AFTER + 1):
        batch = rows(3, 8)
        np.testing.assert_array_equal(run.run(batch), answer(batch))
    assert run.describe()["cuda_graphs"] == "off: cuStreamEndCapture failed"


def test_a_library_that_captures_by_itself_is_left_to_it(tmp_path: Path) -> None:
    content = LibraryCache()
    run, engine, _ = executor(tmp_path, cache=RuntimeCache(content, [tmp_path / "c" / "x.bin"]))
    for _ in range(lanes.GRAPH_AFTER + 1):
        run.run(rows(3, 8))
    assert (len(engine._contexts), run.describe()["cuda_graphs"]) == (2, "library")
    assert run.describe()["kernel_cache"] == len(b"+")
    run.close()
    assert (tmp_path / "c" / "x.bin").is_file()


# --- refusals while running


def test_a_batch_beyond_the_plan_is_refused(tmp_path: Path) -> None:
    run, _, _ = executor(tmp_path)
    for lengths in ((1,) * 5, (33,), (9, 9, 9)):
        with pytest.raises(EngineError, match=r"batch input_ids \[\d+, \d+\].* is larger than the plan"):
            run.run(rows(*lengths))


def test_a_failure_of_the_library_is_an_error(tmp_path: Path) -> None:
    run, _, _ = executor(tmp_path, works=False)
    with pytest.raises(EngineError, match=r"tensorrt-rtx-sm80.*the library could not run the batch"):
        run.run(rows(3))


def test_inputs_the_plan_wants_and_the_manifest_does_not_name(tmp_path: Path) -> None:
    run, _, _ = executor(tmp_path, ("attention_mask",))
    with pytest.raises(EngineError, match="wants inputs that were not given: input_ids"):
        run.run(rows(3))


def test_one_result_a_token(tmp_path: Path) -> None:
    manifest = bundle_manifest(tmp_path, task="token-classify", labels=("a", "b", "c"))
    fake = Engine(PADDED, "logits", per_token=True)
    made = TensorRtExecutor(fake, None, HostMemory(), record(inputs=PADDED), manifest, {}, None)
    batch = rows(3, 7)
    for one, out in zip(batch, made.run(batch), strict=True):
        np.testing.assert_array_equal(out, np.stack([one.ids, one.types, np.ones_like(one.ids)], axis=-1))


def test_a_closed_engine_does_not_run(tmp_path: Path) -> None:
    run, _, memory = executor(tmp_path)
    run.run(rows(3))
    run.close()
    run.close()
    assert memory.size() == 0
    with pytest.raises(EngineError, match="the engine is closed"):
        run.run(rows(3))


# --- the cache of compiled kernels


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


def test_a_cache_is_kept_from_start_to_start(tmp_path: Path) -> None:
    file = tmp_path / "bundle.cache" / "x.bin"
    for kept in (b"+", b"++"):
        RuntimeCache(LibraryCache(), [file]).save()
        assert file.read_bytes() == kept
    assert [path.name for path in file.parent.iterdir()] == ["x.bin"]


def test_a_cache_that_the_library_rejects_or_that_grew_too_large_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.bin").write_bytes(b"other GPU")
    RuntimeCache(LibraryCache(), [tmp_path / "x.bin"]).save()
    assert (tmp_path / "x.bin").read_bytes() == b"+"
    monkeypatch.setattr(cache_module, "MAX_BYTES", 3)
    (tmp_path / "x.bin").write_bytes(b"++++")
    RuntimeCache(LibraryCache(), [tmp_path / "x.bin"]).save()
    assert (tmp_path / "x.bin").read_bytes() == b"+"


def test_a_bundle_that_cannot_be_written_beside_keeps_its_cache_with_the_user(tmp_path: Path) -> None:
    (tmp_path / "bundle.cache").write_text("a file where the folder should be")
    places = [tmp_path / "bundle.cache" / "x.bin", tmp_path / "home" / "x.bin"]
    for kept in (b"+", b"++"):
        RuntimeCache(LibraryCache(), places).save()
        assert places[1].read_bytes() == kept


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "bundle.cache").write_text("a file where the folder should be")
    cache = RuntimeCache(LibraryCache(), [tmp_path / "bundle.cache" / "x.bin"])
    cache.save()
    assert cache.size == 0


def test_a_cache_is_written_after_the_first_call_too(tmp_path: Path) -> None:
    cache = RuntimeCache(LibraryCache(), [tmp_path / "x.bin"])
    cache.count()
    assert (tmp_path / "x.bin").exists()


def test_a_cache_belongs_to_an_engine_a_gpu_a_version_and_a_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    monkeypatch.setattr(cache_module, "driver_version", lambda: "580.65.06")
    name = "tensorrt-rtx-sm80-sm89-nvidia-l4-1-7-1-580-65-06.bin"
    assert cache_files(record(), tmp_path / "m.bundle", gpu(89), "1.7.1") == (
        tmp_path / "m.bundle.cache" / name,
        Path("/cache/bei/m.bundle.cache") / name,
    )
    monkeypatch.setattr(cache_module, "driver_version", lambda: None)
    assert cache_files(record(), tmp_path, gpu(89), "1.7.1")[0].name.endswith("-1-7-1-cuda-13-0.bin")
