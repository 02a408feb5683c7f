"""The CUDA engine on a real GPU: every architecture against TorchOps in fp32, and what must hold under load."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from tests.adapters.tiny import HIDDEN_STATES, Loaded, batch, load
from tests.gpu.prepared import names, read
from tests.gpu.results import cosines, ids_of, near_expected

from bei.adapters.head import Dense, Head, Normalize
from bei.compiler.engines.cuda import build
from bei.compiler.lowering.cuda_options import CudaOptions
from bei.compiler.lowering.signature import signature
from bei.compiler.lowering.torch_ops import run_torch
from bei.compiler.precision.policy import PLAIN, Policy, units
from bei.compiler.weights import Weight
from bei.errors import EngineError
from bei.runtime.cuda.engine import Engine
from bei.runtime.cuda.gpu import Gpu
from bei.runtime.executor import Row

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.skipif(not names(), reason="needs prepared models (tests/gpu/prepared.py)"),
]

EMBED = Head(task="embed", pooling=("mean",), steps=(Normalize(),))
ONE_A_FAMILY = ("bert", "modernbert", "mpnet", "nomic-bert-moe", "jina-bert", "gte", "qwen3", "gemma3")


def rows_of(ids: torch.Tensor, mask: torch.Tensor) -> list[Row]:
    return [Row(ids=line.astype(np.int32), types=np.zeros(line.size, np.int32)) for line in ids_of(ids, mask)]


@cache
def sm() -> int:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def open_engine(
    loaded: Loaded,
    head: Head,
    options: CudaOptions | None = None,
    policy: Policy = PLAIN,
    weights: dict[str, Weight] | None = None,
    device: int = 0,
) -> Engine:
    every = {**loaded.weights, **(weights or {})}
    plan = build(loaded.cfg, head, every, options or CudaOptions(sm=sm()), policy)
    return Engine(Gpu("test", device), plan, loaded.folder)


@pytest.fixture
def bert() -> Iterator[Engine]:
    engine = open_engine(load(read("bert")[0]), EMBED)
    yield engine
    engine.close()


def check(
    name: str, options: CudaOptions | None = None, policy: Policy = PLAIN, typical: float = 0.9999
) -> None:
    """Twice: the second time through the captured graph."""
    folder, ids, mask, expected = read(name)
    engine = open_engine(load(folder), HIDDEN_STATES, options, policy)
    for _ in range(2):
        near_expected(list(engine.run(rows_of(ids, mask))), expected, mask, typical)
    engine.close()


@pytest.mark.parametrize("name", names())
def test_every_architecture_computes_what_torch_ops_computes(name: str) -> None:
    check(name)


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_activations_apart_and_grouped_experts_compute_the_same(name: str) -> None:
    check(name, CudaOptions(sm=sm(), fuse_activation=False, experts="grouped"))


@pytest.mark.parametrize("wide", ["bf16", "fp32"])
@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_islands_throughout(name: str, wide: str) -> None:
    cfg = load(read(name)[0]).cfg
    policy = Policy(islands=dict.fromkeys(units(cfg), "bf16" if wide == "bf16" else "fp32"))
    check(name, None, policy, 0.999 if wide == "bf16" else 0.9999)


def random_rows(count: int, seed: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 40, count)
    return [Row(ids=rng.integers(5, 97, n).astype(np.int32), types=np.zeros(n, np.int32)) for n in sizes]


@pytest.mark.parametrize("name", ["bert", "nomic-bert-moe"])
def test_a_row_does_not_depend_on_its_neighbours(name: str) -> None:
    engine = open_engine(load(read(name)[0]), EMBED)
    rows = random_rows(100, seed=1)
    together = np.asarray(engine.run(rows))
    assert np.isfinite(together).all()
    for at in range(0, 100, 7):
        assert cosines(np.asarray(engine.run([rows[at]]))[0], together[at]) > 0.99999
    engine.close()


@pytest.mark.parametrize("head_dim", [32, 64, 128, 256])
def test_wide_heads_in_large_and_small_batches(head_dim: int) -> None:
    """Where Hopper has attention of its own for large ones."""
    loaded = load(read("bert")[0])
    scale = head_dim**-0.5
    cfg = replace(loaded.cfg, heads=2, kv_heads=2, head_dim=head_dim, attn_scale=scale, positions=300)
    weights = random_weights(signature(cfg, EMBED).needed)
    engine = Engine(Gpu("test"), build(cfg, EMBED, weights, CudaOptions(sm=sm())), loaded.folder)
    rows = [
        *random_rows(300, seed=3),
        Row(ids=np.arange(300, dtype=np.int32) % 97, types=np.zeros(300, np.int32)),
    ]
    ids, mask = (torch.zeros(len(rows), 300, dtype=torch.int64) for _ in range(2))
    for at, row in enumerate(rows):
        ids[at, : row.ids.size] = torch.from_numpy(row.ids.astype(np.int64))
        mask[at, : row.ids.size] = 1
    expected = run_torch(cfg, EMBED, weights, ids, mask).numpy()
    assert cosines(expected, np.asarray(engine.run(rows))).min() > 0.9999
    assert cosines(expected[-3:], np.asarray(engine.run(rows[-3:]))).min() > 0.9999
    engine.close()


def random_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Weight]:
    """Products keep the size of what they multiply; norms change it a little."""
    rng = np.random.default_rng(0)
    made = {}
    for name, shape in shapes.items():
        data = rng.standard_normal(shape) / shape[-1] ** 0.5 + (len(shape) == 1)
        made[name] = Weight(name=name, shape=shape, dtype="F32", data=data.astype(np.float32))
    return made


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


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_replicas_on_two_gpus_answer_alike() -> None:
    loaded = load(read("bert")[0])
    first, second = (open_engine(loaded, EMBED, device=number) for number in (0, 1))
    rows = random_rows(50, seed=2)
    tickets = first.submit(rows), second.submit(rows)
    np.testing.assert_array_equal(np.asarray(second.result(tickets[1])), np.asarray(first.result(tickets[0])))
    first.close()
    np.testing.assert_array_equal(np.asarray(second.run(rows)), np.asarray(second.run(rows)))
    second.close()


def test_head_of_dense_layers_is_fp32() -> None:
    loaded = load(read("bert")[0])
    steps = (Dense(name="head.a", out=7, act="tanh"), Dense(name="head.b", out=7, residual=True), Normalize())
    head = replace(EMBED, pooling=("cls", "weighted_mean"), steps=steps)
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> Weight:
        data = rng.standard_normal(shape).astype(np.float32)
        return Weight(name=name, shape=shape, dtype="F32", data=data)

    extra = {
        "head.a.weight": weight("head.a.weight", 7, 2 * loaded.cfg.dim),
        "head.a.bias": weight("head.a.bias", 7),
        "head.b.weight": weight("head.b.weight", 7, 7),
    }
    engine = open_engine(loaded, head, weights=extra)
    ids, mask = batch((3, 12, 30), loaded.cfg.vocab)
    expected = run_torch(loaded.cfg, head, {**loaded.weights, **extra}, ids, mask).numpy()
    assert cosines(expected, np.asarray(engine.run(rows_of(ids, mask)))).min() > 0.9999
    engine.close()
