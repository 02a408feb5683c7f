"""Budgets, refusals and the comparison with what was built."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from bei.adapters.config import EncoderConfig
from bei.cards import CARDS, card
from bei.compiler.engines.weight_memory import weight_memory
from bei.compiler.lowering.emit import emit
from bei.compiler.lowering.policy import TENSORRT
from bei.compiler.planning.gate import check_card, check_disk, check_host, free_memory
from bei.compiler.planning.memory import (
    HOST_BASE,
    PARITY_BASE,
    RESERVE,
    MemoryPlan,
    Subject,
    build_memory,
    compare,
    halved_weights,
    plan_memory,
)
from bei.compiler.target import parse_target
from bei.errors import EngineError, InputError
from bei.manifest import EngineRecord, Limits, Profile
from tests.compiler.engines.small import BERT, HEAD, WINDOWED, random_weights
from tests.compiler.planning.test_activation import BASE

RTX = "tensorrt-rtx-sm80+sm89"
LIMITS = Limits(max_length=512, max_batch_tokens=16384, max_batch=4096)


def planned(target: str, folder: Path, limits: Limits = LIMITS) -> MemoryPlan:
    subject = Subject(cfg=BASE, head=HEAD, weights=random_weights(BASE, folder), limits=limits)
    plan = plan_memory(parse_target(target), subject)
    assert plan is not None
    return plan


@pytest.mark.parametrize("target", [RTX, "cuda-sm90", "tensorrt-sm90"])
def test_the_budget_of_a_card_is_the_largest_that_fits(target: str, tmp_path: Path) -> None:
    plan = planned(target, tmp_path)
    served = [one for one in CARDS if one.sm in parse_target(target).sms]
    assert list(plan.budgets) == [one.name for one in served]
    assert plan.device == plan.weights + plan.activation + plan.io + RESERVE
    for one in served:
        budget = plan.budgets[one.name]
        assert budget is not None
        at = planned(target, tmp_path, msgspec.structs.replace(LIMITS, max_batch_tokens=budget))
        above = planned(target, tmp_path, msgspec.structs.replace(LIMITS, max_batch_tokens=budget + 2048))
        assert at.device <= one.memory
        assert budget == plan.largest_call or above.device > one.memory


def test_the_cuda_engines_activation_is_its_arena(tmp_path: Path) -> None:
    small, large = (
        planned("cuda-sm90", tmp_path, msgspec.structs.replace(LIMITS, max_batch_tokens=n)).activation
        for n in (8192, 16384)
    )
    assert (large - small) % 8192 == 0
    assert planned("cuda-sm90", tmp_path).source == "launch plan"


def test_a_cpu_engine_has_no_plan(tmp_path: Path) -> None:
    subject = Subject(cfg=BASE, head=HEAD, weights=random_weights(BASE, tmp_path), limits=LIMITS)
    assert plan_memory(parse_target("onnxruntime-cpu"), subject) is None


def test_a_budget_that_does_not_fit_names_the_one_that_does(tmp_path: Path) -> None:
    huge = planned(RTX, tmp_path, msgspec.structs.replace(LIMITS, max_batch_tokens=2097152))
    with pytest.raises(EngineError) as refusal:
        check_card([huge], card("l4"))
    said = str(refusal.value)
    assert f"The largest --max-batch-tokens that fits is {huge.budgets['L4']}." in said
    assert said.startswith(f"{RTX}: needs ")
    assert "on L4, which has 24.0 GB" in said
    check_card([huge], card("a100 80gb"))
    nothing = replace(huge, budgets={"L4": None})
    with pytest.raises(EngineError, match="Not even one text of the longest length fits: lower --max-length"):
        check_card([nothing], card("L4"))


def test_a_card_that_no_target_serves(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"card H100: none of the targets runs on SM90\. .*cuda-sm90"):
        check_card([planned(RTX, tmp_path)], card("H100"))


def test_a_card_that_nobody_knows() -> None:
    with pytest.raises(InputError, match=r"card 'L40': unknown\. Did you mean 'L4'\? Known cards: L4, A10G"):
        card("L40")
    known = card("rtx 4090")
    assert (known.name, known.sm, known.memory) == ("RTX-4090", 89, 24 * 10**9)


def test_a_host_or_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(RTX, tmp_path)
    check_host([plan], None)
    check_host([plan], plan.host)
    with pytest.raises(
        EngineError, match=rf"{RTX.replace('+', '.')}: building needs about .* of memory \(1\.3 times"
    ):
        check_host([plan], plan.host - 1)
    check_disk([plan], 0, tmp_path)
    assert plan.scratch == halved_weights(random_weights(BASE, tmp_path)) > plan.disk // 2
    monkeypatch.setattr(
        shutil, "disk_usage", lambda where: SimpleNamespace(free=2 * plan.disk + plan.scratch)
    )
    check_disk([plan, plan], 0, tmp_path)  # one is built after the other
    with pytest.raises(
        EngineError, match=r"the build needs about .* of disk \(weights 1 bytes?, plans .*, FP16"
    ):
        check_disk([plan, plan], 1, tmp_path)


@pytest.mark.parametrize(("cfg", "joined"), [(BERT, "qkv"), (WINDOWED, ("q", "k", "v", "gate", "up"))])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weights_on_disk_while_a_plan_is_built_are_those_the_builder_gets_in_a_file(
    cfg: EncoderConfig, joined: Sequence[str], dtype: Any, tmp_path: Path
) -> None:
    weights = random_weights(cfg, tmp_path, dtype)
    emitted = emit(cfg, HEAD, weights, TENSORRT)
    memory = weight_memory("here", emitted.serialize(), emitted.weights, tmp_path)
    kept = {name for name, weight in weights.items() if weight.dtype == "F16"}
    passing = [a for name, a in memory.arrays.items() if a.dtype == np.float16 and name not in kept]
    assert halved_weights(weights) == sum(array.nbytes for array in passing) > 0
    if dtype == np.float16:
        parts = [w.nbytes for n, w in weights.items() if n.split(".")[-2] in joined]
        assert halved_weights(weights) == sum(parts)


def test_free_memory_is_a_number_or_unknown() -> None:
    free = free_memory()
    assert free is None or free > 0


@pytest.mark.parametrize(("reported", "within"), [(1.0, True), (0.8, False), (1.3, False), (None, None)])
def test_the_comparison_with_what_was_built(
    reported: float | None, within: bool | None, tmp_path: Path
) -> None:
    plan = planned(RTX, tmp_path)
    size = None if reported is None else round(plan.activation * reported)
    engine = EngineRecord(
        target=RTX,
        backend="tensorrt-rtx",
        device="cuda",
        layout="padded",
        precision="fp16",
        path="plan",
        inputs=(),
        status="built, not executed",
        tool_versions={},
        profiles=(Profile(max_batch=1, max_length=1, max_tokens=1, activation_bytes=size),),
    )
    found = compare(plan, engine)
    assert found["within"] is within
    assert found["reported_activation_bytes"] == [size]


def test_a_build_takes_what_its_builder_or_its_parity_takes(tmp_path: Path) -> None:
    plan, weights = planned(RTX, tmp_path), random_weights(BASE, tmp_path)
    numbers = sum(int(np.prod(weight.shape)) for weight in weights.values())
    assert build_memory(None, weights, certified=False) == HOST_BASE
    assert build_memory(plan, weights, certified=False) == plan.host > HOST_BASE
    assert build_memory(None, weights, certified=True) == PARITY_BASE + 8 * numbers
    huge = replace(plan, host=10**12)
    assert build_memory(huge, weights, certified=True) == 10**12
