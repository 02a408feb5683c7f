"""The engine on a simulated device: heads, batches in flight, growth, memory that runs out."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec import structs
from tests.adapters.cases import CASES
from tests.adapters.tiny import Loaded, batch, load, save
from tests.compiler.cuda.simulated import LateDevice, SimulatedDevice
from tests.compiler.cuda.test_plan_parity import rows_of

from bei.adapters.head import Dense, Head, LayerNorm, Normalize, Pooling, Step
from bei.compiler.engines.cuda import lower
from bei.compiler.lowering.cuda_options import CudaOptions
from bei.compiler.lowering.torch_ops import run_torch
from bei.compiler.weights import Weight
from bei.errors import EngineError, InputError
from bei.manifest import EngineRecord
from bei.runtime.cuda.engine import Engine
from bei.runtime.executor import Guarded, Row
from bei.runtime.executors.cuda import CudaExecutor

RECORD = EngineRecord(
    target="cuda-sm90",
    backend="cuda",
    device="cuda",
    layout="packed",
    precision="plain",
    path="plan",
    inputs=(),
    status="executed",
    tool_versions={},
)
EMBED = Head(task="embed", pooling=("mean",), steps=(Normalize(),))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder: Path = tmp_path_factory.mktemp("bert")
    save(CASES[0], folder)
    return load(folder)


def engine_of(
    bert: Loaded, head: Head = EMBED, *, weights: dict[str, Weight] | None = None, memory: int = 1 << 24
) -> Engine:
    plan, _ = lower(bert.cfg, head, {**bert.weights, **(weights or {})}, CudaOptions(sm=90))
    return Engine(SimulatedDevice(plan, memory), plan, bert.folder)


@pytest.fixture
def engine(bert: Loaded) -> Iterator[Engine]:
    made = engine_of(bert)
    yield made
    made.close()


def random_rows(count: int, seed: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 12, count)
    return [Row(ids=rng.integers(5, 97, n).astype(np.int32), types=np.zeros(n, np.int32)) for n in sizes]


def check_head(
    bert: Loaded, head: Head, weights: dict[str, Weight] | None = None, prompt: bool = False
) -> None:
    ids, mask = batch((1, 7, 12), bert.cfg.vocab)
    prompts = torch.tensor([0, 3, 5]) if prompt else None
    every = {**bert.weights, **(weights or {})}
    expected = run_torch(bert.cfg, head, every, ids, mask, prompt=prompts).numpy()
    rows = rows_of(ids, mask)
    if prompts is not None:
        rows = [structs.replace(row, prompt_tokens=int(n)) for row, n in zip(rows, prompts, strict=True)]
    np.testing.assert_allclose(
        np.asarray(engine_of(bert, head, weights=weights).run(rows)), expected, atol=0.02
    )


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "mean_sqrt_len", "weighted_mean", "last"])
@pytest.mark.parametrize("include_prompt", [True, False])
def test_every_pooling(bert: Loaded, pooling: Pooling, include_prompt: bool) -> None:
    head = Head(task="embed", pooling=(pooling,), steps=(), include_prompt=include_prompt)
    check_head(bert, head, prompt=not include_prompt)


def test_poolings_dense_norm_and_residual(bert: Loaded) -> None:
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> dict[str, Weight]:
        data = rng.standard_normal(shape).astype(np.float32) / shape[-1] ** 0.5
        return {name: Weight(name=name, shape=shape, dtype="F32", data=data)}

    steps: tuple[Step, ...] = (
        Dense(name="head.a", out=7, act="tanh"),
        Dense(name="head.b", out=7, act="gelu", residual=True),
        LayerNorm(name="head.norm", eps=1e-5),
        Normalize(),
    )
    weights = {
        **weight("head.a.weight", 7, 2 * bert.cfg.dim),
        **weight("head.a.bias", 7),
        **weight("head.b.weight", 7, 7),
        **weight("head.norm.weight", 7),
    }
    check_head(bert, Head(task="embed", pooling=("cls", "mean"), steps=steps), weights)


def test_a_row_does_not_depend_on_its_neighbours(engine: Engine) -> None:
    rows = random_rows(20, seed=1)
    together = np.asarray(engine.run(rows))
    for at in (0, 9, 19):
        np.testing.assert_allclose(np.asarray(engine.run([rows[at]]))[0], together[at], atol=2e-3)


def test_two_batches_in_flight_keep_their_own_results(engine: Engine) -> None:
    batches = [random_rows(n, seed=n) for n in (3, 40, 5)]
    expected = [np.asarray(engine.run(rows)) for rows in batches]
    first, second = engine.submit(batches[0]), engine.submit(batches[1])
    np.testing.assert_array_equal(np.asarray(engine.result(first)), expected[0])
    third = engine.submit(batches[2])
    np.testing.assert_array_equal(np.asarray(engine.result(second)), expected[1])
    np.testing.assert_array_equal(np.asarray(engine.result(third)), expected[2])


def test_a_third_batch_in_flight_is_an_error(engine: Engine) -> None:
    waiting = [engine.submit(random_rows(2, seed=0)) for _ in range(2)]
    with pytest.raises(EngineError, match="2 batches are waiting"):
        engine.submit(random_rows(2, seed=0))
    for ticket in waiting:
        engine.result(ticket)
    engine.run(random_rows(2, seed=0))


def test_threads_keep_a_slow_device_busy_and_their_results_apart(bert: Loaded) -> None:
    """Batches of all sizes, growing, whose results are taken in any order."""
    plan, _ = lower(bert.cfg, EMBED, bert.weights, CudaOptions(sm=90))
    engine = Engine(LateDevice(plan), plan, bert.folder)
    executor = Guarded(CudaExecutor(engine, RECORD))
    batches = [random_rows(1 + 7 * n % 60, seed=n) for n in range(40)]
    alone = engine_of(bert, memory=1 << 26)
    expected = [np.asarray(alone.run(rows)) for rows in batches]
    with ThreadPoolExecutor(6) as pool:
        for got, want in zip(pool.map(executor.run, batches), expected, strict=True):
            np.testing.assert_array_equal(np.asarray(got), want)
    executor.close()


def test_results_wait_in_their_own_memory_while_others_grow_it(bert: Loaded) -> None:
    plan, _ = lower(bert.cfg, EMBED, bert.weights, CudaOptions(sm=90))
    engine = Engine(LateDevice(plan), plan, bert.folder)
    small, large = random_rows(2, seed=0), random_rows(90, seed=1)
    want = np.asarray(engine_of(bert, memory=1 << 26).run(small))
    first, second = engine.submit(small), engine.submit(large)
    engine.result(second)
    third = engine.submit(random_rows(3, seed=2))
    np.testing.assert_array_equal(np.asarray(engine.result(first)), want)
    engine.result(third)


def test_out_of_memory_is_an_error_and_small_batches_still_run(bert: Loaded) -> None:
    engine = engine_of(bert, memory=600_000)
    small = random_rows(2, seed=0)
    before = np.asarray(engine.run(small))
    with pytest.raises(EngineError, match="out of memory"):
        engine.run(random_rows(3000, seed=1))
    np.testing.assert_array_equal(np.asarray(engine.run(small)), before)


@pytest.mark.parametrize("rows", [[], [Row(ids=np.zeros(0, np.int32), types=np.zeros(0, np.int32))]])
def test_nothing_to_compute_is_an_input_error(engine: Engine, rows: list[Row]) -> None:
    with pytest.raises(InputError):
        engine.run(rows)


def test_missing_weights_are_named(bert: Loaded, tmp_path: Path) -> None:
    plan, _ = lower(bert.cfg, EMBED, bert.weights, CudaOptions(sm=90))
    with pytest.raises(EngineError, match=r"model\.safetensors: weights cannot be read"):
        Engine(SimulatedDevice(plan), plan, tmp_path)
