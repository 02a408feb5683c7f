"""`Gpu` on a simulated driver that knows, as the real one does, which context a thread is in and what belongs to which."""

import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from tests.adapters.cases import CASES
from tests.adapters.tiny import Loaded, load, save
from tests.compiler.cuda.test_plan_parity import EMBED

from bei.compiler.engines.cuda import lower
from bei.compiler.lowering.cuda_options import CudaOptions
from bei.cuda_plan import Function, Launch, Plan
from bei.errors import EngineError
from bei.runtime.cuda import gpu as module
from bei.runtime.cuda.engine import Engine
from bei.runtime.cuda.gpu import Gpu
from bei.runtime.executor import Row


class SimulatedDriver:
    """Contexts are 1000, 1001, …; every other handle remembers the context it was made in. ``limit``: bytes a device."""

    limit: ClassVar[int] = 1 << 40
    current: ClassVar[dict[int, int]] = {}
    owner: ClassVar[dict[int, int]] = {}
    sizes: ClassVar[dict[int, int]] = {}
    host: ClassVar[dict[int, Any]] = {}
    maps: ClassVar[list[tuple[Any, ...]]] = []
    grids: ClassVar[list[tuple[int, ...]]] = []
    asked: ClassVar[list[tuple[int, ...]]] = []
    next: ClassVar[int] = 5000

    def __init__(self, subject: str) -> None:
        self.subject = subject

    @classmethod
    def reset(cls) -> None:
        cls.limit = 1 << 40
        for table in (cls.current, cls.owner, cls.sizes, cls.host, cls.maps, cls.grids, cls.asked):
            table.clear()

    def context(self) -> int:
        return self.current[threading.get_ident()]

    def made(self, nbytes: int = 0) -> int:
        """A new handle, or the address of so many bytes that overlap no others."""
        handle = self.next
        type(self).next += 256 + nbytes // 256 * 256
        self.owner[handle] = self.context()
        return handle

    def check(self, *arguments: Any) -> None:
        """Whatever belongs to a context is used in it."""
        for argument in arguments:
            value = getattr(argument, "value", argument)
            owner = self.owner.get(value) if isinstance(value, int) else None
            assert owner in (None, self.context()), (
                f"{value} belongs to context {owner}, not {self.context()}"
            )

    def handle(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        if name == "cuDevicePrimaryCtxRetain":
            return ctypes.c_void_p(1000 + arguments[0].value)
        self.check(*arguments)
        if name == "cuMemHostAlloc":
            memory = ctypes.create_string_buffer(arguments[0])
            self.host[ctypes.addressof(memory)] = memory
            return ctypes.c_void_p(ctypes.addressof(memory))
        return ctypes.c_void_p(self.made())

    def status(self, name: str, *arguments: Any) -> int:
        assert name == "cuMemAlloc_v2"
        address, nbytes = arguments
        used = sum(size for at, size in self.sizes.items() if self.owner[at] == self.context())
        if used + nbytes > self.limit:
            return 2
        address._obj.value = self.made(nbytes)
        self.sizes[address._obj.value] = nbytes
        return 0

    def __call__(self, name: str, *arguments: Any) -> None:
        if name == "cuDeviceGet":
            arguments[0]._obj.value = arguments[1]
        elif name == "cuCtxSetCurrent":
            self.current[threading.get_ident()] = arguments[0].value
        elif name == "cuStreamEndCapture":
            arguments[1]._obj.value = self.made()
        elif name == "cuDeviceGetAttribute":
            arguments[0]._obj.value = 132
        elif name == "cuOccupancyMaxActiveClusters":
            config = arguments[2]._obj
            self.asked.append((config.grid_x, config.block_x, config.shared))
            arguments[0]._obj.value = 66
        elif name not in (
            "cuDeviceGetName",
            "cuDevicePrimaryCtxRelease_v2",
            "cuDriverGetVersion",
            "cuMemGetInfo_v2",
        ):
            self.check(*arguments)
            if name == "cuMemFree_v2":
                del self.sizes[arguments[0]]
            elif name == "cuTensorMapEncodeTiled":
                self.maps.append(arguments)
            elif name == "cuLaunchKernel":
                self.grids.append(arguments[1:4])


class SimulatedLt:
    """A cuBLASLt handle belongs to the context it was made in."""

    version = "13.0.0"

    def __init__(self, subject: str, stream: ctypes.c_void_p, workspace: int) -> None:
        self.driver, self.stream, self.workspace = SimulatedDriver(subject), stream, workspace
        self.context = self.driver.context()

    def multiply(self, step: Any, at: Any, rows: int) -> None:
        assert self.driver.context() == self.context
        self.driver.check(at.x, at.weight, at.bias, at.out, self.stream, self.workspace)

    def close(self) -> None:
        assert self.driver.context() == self.context


@pytest.fixture(autouse=True)
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[SimulatedDriver]]:
    SimulatedDriver.reset()
    monkeypatch.setattr(module, "Driver", SimulatedDriver)
    monkeypatch.setattr(module, "CublasLt", SimulatedLt)
    yield SimulatedDriver


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder: Path = tmp_path_factory.mktemp("bert")
    save(CASES[0], folder)
    return load(folder)


def plan_of(bert: Loaded) -> Plan:
    """Kernels without machine code: the simulated driver runs none."""
    import msgspec

    plan, kernels = lower(bert.cfg, EMBED, bert.weights, CudaOptions(sm=90))
    function = Function(cubin=b"", symbol="kernel", threads=32, shared=0, scratch=2)
    return msgspec.structs.replace(plan, functions=dict.fromkeys(kernels, function))


def rows(count: int) -> list[Row]:
    return [Row(ids=np.arange(5, 12, dtype=np.int32), types=np.zeros(7, np.int32)) for _ in range(count)]


def test_engines_on_two_devices_keep_to_their_own_in_any_order_and_thread(bert: Loaded) -> None:
    gpus = [Gpu("cuda-sm90", index) for index in (0, 1)]  # both made before either is used
    engines = [Engine(gpu, plan_of(bert), bert.folder) for gpu in gpus]
    tickets = [engine.submit(rows(n)) for engine, n in zip(engines, (3, 40), strict=True)]
    for engine, ticket in zip(reversed(engines), reversed(tickets), strict=True):
        engine.result(ticket)
        engine.describe()
    failures: list[BaseException] = []

    def work(engine: Engine, count: int) -> None:
        try:
            for n in range(1, 6):
                engine.run(rows(n * count))
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(engine, n)) for engine, n in zip(engines, (7, 30), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    engines[0].close()
    engines[1].run(rows(2))
    engines[1].close()
    assert not SimulatedDriver.sizes, "all memory was given back"


def test_two_engines_of_one_device_do_not_share_buffers(bert: Loaded) -> None:
    first, second = (Engine(Gpu("cuda-sm90", 0), plan_of(bert), bert.folder) for _ in range(2))
    first.run(rows(3))
    second.run(rows(3))
    first.close()
    second.run(rows(3))
    second.close()
    assert not SimulatedDriver.sizes


def test_one_device_out_of_memory_leaves_the_other_and_itself_alive(
    bert: Loaded, driver: type[SimulatedDriver]
) -> None:
    engines = [Engine(Gpu("cuda-sm90", index), plan_of(bert), bert.folder) for index in (0, 1)]
    for engine in engines:
        engine.run(rows(2))
    driver.limit = max(
        sum(n for at, n in driver.sizes.items() if driver.owner[at] == context) for context in (1000, 1001)
    )
    with pytest.raises(
        EngineError, match=r"cuda-sm90: out of GPU memory \(needs \d+ MiB.*Send smaller batches"
    ):
        engines[0].run(rows(3000))
    engines[1].run(rows(2))
    engines[0].run(rows(2))
    for engine in engines:
        engine.close()
    assert not driver.sizes


def test_an_engine_that_does_not_fit_gives_back_what_it_took(
    bert: Loaded, driver: type[SimulatedDriver]
) -> None:
    driver.limit = 10_000
    gpu = Gpu("cuda-sm90", 1)
    with pytest.raises(EngineError, match="out of GPU memory"):
        Engine(gpu, plan_of(bert), bert.folder)
    gpu.close()
    assert not driver.sizes


def test_tensor_maps_say_where_an_operand_is_and_how_its_tiles_lie(bert: Loaded) -> None:
    gpu, plan = Gpu("cuda-sm90"), plan_of(bert)
    gpu.load(plan.functions)
    step = next(s for s in plan.schedules[-1].steps if isinstance(s, Launch) and s.op == "linear")
    addresses = {name: 1 << 20 | n << 12 for n, name in enumerate(step.operands) if step.operands[name]}
    for _ in range(2):
        gpu.launch(step, list(addresses.values()), {"tokens": 5000, "one": 1})
    assert SimulatedDriver.grids == [(2, 66, 1)] * 2
    made = plan.functions[step.function]
    assert SimulatedDriver.asked == [(made.cluster, made.threads, made.shared)]
    del SimulatedDriver.maps[3:]
    assert len(SimulatedDriver.maps) == len(step.boxes) == 3
    for name, (at, dtype, rank, address, shape, strides, box, steps, _, swizzle, *_) in zip(
        ("x", "weight", "out"), SimulatedDriver.maps, strict=True
    ):
        operand, how = step.operands[name], step.boxes[name]
        assert operand and at % 64 == 0 and (dtype, rank) == (6, 2)
        assert address == addresses[name] and list(steps) == [1, 1]
        rows = step.operands["out"].width if name == "weight" else 5000  # type: ignore[union-attr]
        assert list(shape) == [operand.width, rows] and list(strides) == [2 * operand.stride]
        assert list(box) == [how.columns, how.rows]
        assert swizzle == {64: 2, 128: 3}[2 * how.columns]
