"""The launch plan of every architecture, run by the real engine on a simulated device, against TorchOps."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from tests.adapters.cases import CASES
from tests.adapters.tiny import HIDDEN_STATES, Case, batch, load, save
from tests.compiler.cuda.simulated import SimulatedDevice

from bei.adapters.head import Head, Normalize
from bei.compiler.engines.cuda import lower
from bei.compiler.lowering.cuda_large import LEAST
from bei.compiler.lowering.cuda_options import CudaOptions
from bei.compiler.lowering.torch_ops import run_torch
from bei.compiler.precision.policy import PLAIN, Policy, Wide
from bei.cuda_plan import Launch, Plan, decode_plan, encode_plan
from bei.kernels import linear_norm
from bei.runtime.cuda.engine import Engine
from bei.runtime.executor import Row

TINY = {n: linear_norm.Tile(cluster=1, columns=n, stages=3) for n in range(8, 257, 8)}
"""As if every width of a tiny model were one that a multiprocessor can hold."""
EMBED = Head(task="embed", pooling=("mean",), steps=(Normalize(),))


def rows_of(ids: torch.Tensor, mask: torch.Tensor) -> list[Row]:
    return [
        Row(ids=line[keep.bool()].numpy().astype(np.int32), types=np.zeros(int(keep.sum()), np.int32))
        for line, keep in zip(ids, mask, strict=True)
    ]


def check(
    case: Case, folder: Path, options: CudaOptions, policy: Policy = PLAIN, typical: float = 0.9999
) -> Plan:
    """Every schedule, run twice: the second time through the captured graph, in memory that the first left behind."""
    save(case, folder)
    loaded = load(folder)
    ids, mask = batch(case.lengths, loaded.cfg.vocab)
    expected = run_torch(loaded.cfg, HIDDEN_STATES, loaded.weights, ids, mask)
    plan, _ = lower(loaded.cfg, HIDDEN_STATES, loaded.weights, options, policy)
    plan = decode_plan(encode_plan(plan), "plan")
    for one in alone(plan):
        engine = Engine(SimulatedDevice(one), one, folder)
        for _ in range(2):
            results = engine.run(rows_of(ids, mask))
            for line, keep, result in zip(expected, mask, results, strict=True):
                want = line[keep.bool()].numpy()
                norms = np.linalg.norm(want, axis=-1) * np.linalg.norm(result, axis=-1)
                cosine = (want * result).sum(-1) / norms
                assert cosine.min() > 10 * typical - 9  # a token may nearly cancel in a norm
                assert np.median(cosine) > typical
    return plan


def alone(plan: Plan) -> list[Plan]:
    """A plan for each schedule, which serves every batch."""
    return [
        msgspec.structs.replace(plan, schedules=(msgspec.structs.replace(schedule, least=0, waves=None),))
        for schedule in plan.schedules
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_architecture_computes_what_torch_ops_computes(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, CudaOptions(sm=90))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_activations_apart_and_grouped_experts_compute_the_same(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, CudaOptions(sm=90, fuse_activation=False, experts="grouped"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_norms_inside_products_compute_the_same(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_norm, "TILES", TINY)
    plan = check(case, tmp_path, CudaOptions(sm=90, stream="f16"))
    inside = [
        step for step in plan.schedules[-1].steps if isinstance(step, Launch) and step.op == "linear_norm"
    ]
    whole = plan.output.width % 8 == 0  # as the tensor memory accelerator asks
    assert bool(plan.schedules[-1].waves) == bool(inside) == whole
    # the last norm is wanted in fp32, so that of a sandwich the norm before it stays without its sum
    assert {step.attrs["inner"] for step in inside[:-1]} <= {"gemma" in case.name}
    assert all(step.operands["residual"] for step in inside[:-1])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_islands_are_stored_as_the_policy_says(case: Case, tmp_path: Path) -> None:
    islands: dict[str, Wide] = {
        "layers.0.attention": "bf16", "layers.0.mlp": "fp32", "layers.1.attention": "fp32", "layers.1.mlp": "bf16"
    }  # fmt: skip
    plan = check(case, tmp_path, CudaOptions(sm=90), Policy(islands=islands), typical=0.999)
    attention = [
        step for step in plan.schedules[0].steps if isinstance(step, Launch) and step.op == "attention"
    ]
    types = [operand.dtype for step in attention if (operand := step.operands["out"]) is not None]
    assert types[:2] == ["bf16", "f32"] and set(types[2:]) <= {"f16"}


def test_an_island_holds_what_fp16_cannot(tmp_path: Path) -> None:
    """A hidden layer past 65504, scaled back by the product after it."""
    case = next(case for case in CASES if case.name == "bert")
    save(case, tmp_path)
    loaded = load(tmp_path)
    weights = dict(loaded.weights)
    for part, factor in (("up", 2e5), ("down", 1 / 2e5)):
        name = f"layers.0.{part}.weight"
        weights[name] = replace(weights[name], scale=factor)
    ids, mask = batch(case.lengths, loaded.cfg.vocab)
    want = run_torch(loaded.cfg, EMBED, weights, ids, mask).numpy()

    def smallest_cosine(islands: dict[str, Wide]) -> float:
        plan, _ = lower(loaded.cfg, EMBED, weights, CudaOptions(sm=90), Policy(islands=islands))
        got = np.asarray(Engine(SimulatedDevice(plan), plan, tmp_path).run(rows_of(ids, mask)))
        return float((want * got).sum(-1).min())

    assert not smallest_cosine({}) > 0.9999  # NaN
    assert smallest_cosine({"layers.0.mlp": "bf16"}) > 0.999
    assert smallest_cosine({"layers.0.mlp": "fp32"}) > 0.9999


def test_a_token_of_a_mixture_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    case = next(case for case in CASES if "moe" in case.name)
    save(case, tmp_path)
    loaded = load(tmp_path)
    plan, _ = lower(loaded.cfg, EMBED, loaded.weights, CudaOptions(sm=90, experts="grouped"))
    assert plan.slots is not None and "place" in {getattr(step, "op", "") for step in plan.schedules[0].steps}
    engine = Engine(SimulatedDevice(plan), plan, tmp_path)
    rng = np.random.default_rng(0)
    rows = [
        Row(ids=rng.integers(5, 97, n).astype(np.int32), types=np.zeros(n, np.int32)) for n in (40, 3, 90, 1)
    ]
    together = np.asarray(engine.run(rows))
    for row, vector in zip(rows, together, strict=True):
        np.testing.assert_allclose(np.asarray(engine.run([row]))[0], vector, atol=2e-3)


def test_a_large_batch_gives_what_its_texts_give_alone(tmp_path: Path) -> None:
    save(CASES[0], tmp_path)
    loaded = load(tmp_path)
    plan, _ = lower(loaded.cfg, EMBED, loaded.weights, CudaOptions(sm=90))
    device = SimulatedDevice(plan)
    engine, clusters = Engine(device, plan, tmp_path), device.clusters
    rng = np.random.default_rng(0)
    rows = [
        Row(ids=rng.integers(5, 97, 40).astype(np.int32), types=np.zeros(40, np.int32)) for _ in range(105)
    ]
    assert plan.schedule(105 * 40, clusters).least == LEAST > plan.schedule(40, clusters).least
    together = np.asarray(engine.run(rows))
    alone = np.concatenate([np.asarray(engine.run([row])) for row in rows[::23]])
    np.testing.assert_allclose(together[::23], alone, atol=2e-3)
    np.testing.assert_array_equal(np.asarray(engine.run(rows)), together)
