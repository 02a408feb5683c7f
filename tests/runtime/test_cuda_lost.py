"""A CUDA context that has died, told from a call that failed: the driver is a fake, all above it is real."""

import asyncio
import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.test_scheduler import Fake, row, scheduled, values
from tests.runtime.tiny import write_bundle

from bei.errors import EngineError, EngineLost
from bei.runtime.bundle import read_bundle
from bei.runtime.cuda import driver
from bei.runtime.cuda.failure import DEAD
from bei.runtime.cuda_memory import CudaMemory
from bei.runtime.executor import Guarded, Output, Row
from bei.runtime.executors.onnxruntime_cuda import OnnxRuntimeCudaExecutor
from bei.runtime.scheduler import Scheduler

ILLEGAL_ADDRESS, OUT_OF_MEMORY, INVALID_VALUE = 700, 2, 1


class Function:
    """One of the driver's, as ctypes shows it."""

    def __init__(self, name: str, library: "Library") -> None:
        self.name, self.library = name, library
        self.argtypes: Any = None
        self.restype: Any = None

    def __call__(self, *arguments: Any) -> int:
        return self.library.call(self.name, arguments)


class Library:
    """libcuda over host memory: copies are made at once. From ``dead`` on every call answers with that code."""

    def __init__(self) -> None:
        self.failing: dict[str, int] = {}
        self.dead: int | None = None
        self.kept: list[Any] = []

    def __getattr__(self, name: str) -> Function:
        if not name.startswith("cu"):
            raise AttributeError(name)
        return Function(name, self)

    def call(self, name: str, arguments: Sequence[Any]) -> int:
        if name in ("cuGetErrorName", "cuGetErrorString"):
            arguments[1]._obj.value = f"ERROR_{arguments[0]}".encode()
            return 0
        code = self.dead or self.failing.get(name, 0)
        if name in self.failing and code in DEAD:
            self.dead = code
        return code or self.succeed(name, arguments)

    def succeed(self, name: str, arguments: Sequence[Any]) -> int:
        if name in ("cuMemAlloc_v2", "cuMemHostAlloc"):
            self.kept.append(ctypes.create_string_buffer(arguments[1]))
            arguments[0]._obj.value = ctypes.addressof(self.kept[-1])
        elif name in ("cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2"):
            ctypes.memmove(arguments[0], arguments[1], arguments[2])
        elif name in ("cuStreamCreate", "cuEventCreate", "cuDevicePrimaryCtxRetain"):
            arguments[0]._obj.value = 1
        return 0


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setattr(driver, "_open", lambda names: made)
    return made


class OnDevice(Fake):
    """Its batches go through device memory: each row's first id comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.target = "cuda-test"
        self.memory = CudaMemory(self.target, 0)

    def run(self, rows: list[Row]) -> list[Output]:
        self.memory.activate()
        firsts = np.array([[one.ids[0]] for one in rows], np.float32)
        self.memory.upload("x", firsts)
        return list(self.memory.download("x", firsts.shape, np.float32))

    def close(self) -> None:
        self.memory.close()


def test_the_fake_driver_serves_what_the_real_one_would(library: Library) -> None:
    executor = OnDevice()
    assert [float(out[0]) for out in executor.run([row(7), row(3)])] == [7, 3]
    executor.close()


@pytest.mark.parametrize("code", sorted(DEAD))
def test_codes_that_end_a_context_end_the_engine(library: Library, code: int) -> None:
    library.failing["cuEventSynchronize"] = code
    executor = OnDevice()
    with pytest.raises(EngineLost, match=rf"cuda-test: cuEventSynchronize failed: ERROR_{code} \({code}"):
        executor.run([row(1)])
    with pytest.raises(EngineLost):
        executor.run([row(1)])


@pytest.mark.parametrize("code", [INVALID_VALUE, 304, 400, 600, 701, 704, 720, 801, 999])
def test_other_codes_end_a_batch(library: Library, code: int) -> None:
    executor = OnDevice()
    library.failing["cuMemcpyHtoDAsync_v2"] = code
    with pytest.raises(EngineError) as failed:
        executor.run([row(1)])
    assert not isinstance(failed.value, EngineLost)
    library.failing.clear()
    assert float(executor.run([row(5)])[0][0]) == 5


def test_too_little_memory_ends_a_batch_unless_the_context_is_dead(library: Library) -> None:
    executor = OnDevice()
    library.failing["cuMemAlloc_v2"] = OUT_OF_MEMORY
    with pytest.raises(EngineError, match="out of GPU memory") as failed:
        executor.run([row(1)])
    assert not isinstance(failed.value, EngineLost)
    library.failing["cuMemAlloc_v2"] = ILLEGAL_ADDRESS
    with pytest.raises(EngineLost, match="cuMemAlloc failed"):
        executor.run([row(1)])


def test_a_lost_engine_can_be_closed(library: Library) -> None:
    """A server that lost an engine still stops with 0."""
    executor = Guarded(OnDevice())
    executor.run([row(1)])
    library.dead = ILLEGAL_ADDRESS
    executor.close()


def test_a_replica_whose_context_died_is_replaced_by_the_others(library: Library) -> None:
    lost, good = OnDevice(), Fake()

    async def test(scheduler: Scheduler) -> None:
        assert await values(scheduler, row(4)) == [4]
        library.dead = ILLEGAL_ADDRESS
        while scheduler.replicas_alive == 2:
            assert await asyncio.gather(*(values(scheduler, row(n, 60)) for n in range(4))) == [
                [n] for n in range(4)
            ]
        assert await values(scheduler, row(6)) == [6]
        assert scheduler.counts.failed_batches == 0

    scheduled(test, lost, good)


class FailingSession:
    """One of ONNX Runtime's whose device says no."""

    def __init__(self, said: str) -> None:
        self.said = said

    def io_binding(self) -> Any:
        raise RuntimeError(self.said)


@pytest.mark.parametrize(
    ("said", "is_lost"),
    [
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; expr=cudaMemcpy", True),
        ("CUDA failure 719: unspecified launch failure ; GPU=0", True),
        ("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc", False),
        ("Failed to allocate memory for requested buffer of size 700", False),
    ],
)
def test_onnxruntime_tells_the_code_in_its_message(said: str, is_lost: bool, tmp_path: Path) -> None:
    manifest = read_bundle(write_bundle(tmp_path / "b")).manifest
    session: Any = FailingSession(said)
    executor = OnnxRuntimeCudaExecutor(session, manifest.engines[0], manifest, "cpu", 0)
    with pytest.raises(EngineError) as failed:
        executor.run([row(1)])
    assert isinstance(failed.value, EngineLost) == is_lost
