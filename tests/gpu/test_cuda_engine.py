"""The CUDA engine on a real GPU: every architecture against TorchOps in fp32, and what must hold under load."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.adapters.cases import CASES
from tests.adapters.tiny import HIDDEN_STATES, Case, batch, load, save

from bei.adapters.head import Dense, Head, Normalize
from bei.compiler.engines.cuda import build
from bei.compiler.lowering.cuda_options import CudaOptions
from bei.compiler.lowering.torch_ops import run_torch
from bei.errors import EngineError
from bei.runtime.cuda.engine import Engine
from bei.runtime.cuda.gpu import Gpu
from bei.runtime.executor import Row

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

EMBED = Head(task="embed", pooling=("mean",), steps=(Normalize(),))


def rows_of(ids: torch.Tensor, mask: torch.Tensor) -> list[Row]:
    return [
        Row(ids=line[keep.bool()].numpy().astype(np.int32), types=np.zeros(int(keep.sum()), np.int32))
        for line, keep in zip(ids, mask, strict=True)
    ]


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))


def open_engine(case: Case, folder: Path, head: Head) -> Engine:
    loaded = load(folder)
    major, minor = torch.cuda.get_device_capability()
    plan = build(loaded.cfg, head, loaded.weights, CudaOptions(sm=10 * major + minor))
    return Engine(Gpu("test"), plan, folder)


@pytest.fixture
def bert(tmp_path: Path) -> Iterator[Engine]:
    save(CASES[0], tmp_path)
    engine = open_engine(CASES[0], tmp_path, EMBED)
    yield engine
    engine.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_architecture_computes_what_torch_ops_computes(case: Case, tmp_path: Path) -> None:
    save(case, tmp_path)
    loaded = load(tmp_path)
    ids, mask = batch(case.lengths, loaded.cfg.vocab)
    expected = run_torch(loaded.cfg, HIDDEN_STATES, loaded.weights, ids, mask)
    engine = open_engine(case, tmp_path, HIDDEN_STATES)
    for _ in range(2):  # the second time through the captured graph
        for line, keep, result in zip(expected, mask, engine.run(rows_of(ids, mask)), strict=True):
            assert cosines(line[keep.bool()].numpy(), result).min() > 0.9999
    engine.close()


def random_rows(count: int, seed: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 40, count)
    return [Row(ids=rng.integers(5, 97, n).astype(np.int32), types=np.zeros(n, np.int32)) for n in sizes]


def test_a_row_does_not_depend_on_its_neighbours(bert: Engine) -> None:
    rows = random_rows(100, seed=1)
    together = np.asarray(bert.run(rows))
    assert np.isfinite(together).all()
    for at in range(0, 100, 7):
        assert cosines(np.asarray(bert.run([rows[at]]))[0], together[at]) > 0.99999


def test_two_batches_in_flight_do_not_mix(bert: Engine) -> None:
    batches = [random_rows(20 + n, seed=n) for n in range(12)]
    expected = [np.asarray(bert.run(rows)) for rows in batches]
    waiting = [bert.submit(batches[0])]
    got = []
    for rows in batches[1:]:
        waiting.append(bert.submit(rows))
        got.append(np.asarray(bert.result(waiting.pop(0))))
    got.append(np.asarray(bert.result(waiting.pop(0))))
    for want, have in zip(expected, got, strict=True):
        np.testing.assert_array_equal(want, have)


def test_out_of_memory_is_an_error_and_the_engine_goes_on(bert: Engine) -> None:
    rows = random_rows(3, seed=0)
    before = np.asarray(bert.run(rows))
    device = bert.device
    assert isinstance(device, Gpu)
    with pytest.raises(EngineError, match="out of GPU memory"):
        device.allocate(1 << 50)
    np.testing.assert_array_equal(np.asarray(bert.run(rows)), before)


def test_head_of_dense_layers_is_fp32(tmp_path: Path) -> None:
    from dataclasses import replace

    from bei.compiler.weights import Weight

    save(CASES[0], tmp_path)
    loaded = load(tmp_path)
    steps = (Dense(name="head.a", out=7, act="tanh"), Dense(name="head.b", out=7, residual=True), Normalize())
    head = replace(EMBED, pooling=("cls", "weighted_mean"), steps=steps)
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> Weight:
        data = rng.standard_normal(shape).astype(np.float32)
        return Weight(name=name, shape=shape, dtype="F32", data=data)

    extra = {
        "head.a.weight": weight("head.a.weight", 7, 64),
        "head.a.bias": weight("head.a.bias", 7),
        "head.b.weight": weight("head.b.weight", 7, 7),
    }
    weights = {**loaded.weights, **extra}
    major, minor = torch.cuda.get_device_capability()
    plan = build(loaded.cfg, head, weights, CudaOptions(sm=10 * major + minor))
    engine = Engine(Gpu("test"), plan, tmp_path)
    ids, mask = batch((3, 12, 30), loaded.cfg.vocab)
    expected = run_torch(loaded.cfg, head, weights, ids, mask).numpy()
    assert cosines(expected, np.asarray(engine.run(rows_of(ids, mask)))).min() > 0.9999
    engine.close()
