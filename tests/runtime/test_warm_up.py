"""Warm-up touches every size that an engine prepares itself for, within what it may hold."""

from typing import Any

import numpy as np
import pytest

from bei.errors import EngineError
from bei.runtime.batching import Budget
from bei.runtime.executor import Output, Row
from bei.runtime.warm_up import shape_classes, warm_up

ROW = Row(ids=np.array([2, 7, 3], np.int32), types=np.zeros(3, np.int32))


class Recording:
    target = "recording"
    concurrency = 1

    def __init__(self, value: float = 1.0) -> None:
        self.value = value
        self.seen: list[list[int]] = []

    def run(self, rows: list[Row]) -> list[Output]:
        self.seen.append([len(row.ids) for row in rows])
        assert all(np.isin(row.ids, ROW.ids).all() and row.types.size == row.ids.size for row in rows)
        return [np.full(1, self.value, np.float32) for _ in rows]

    def describe(self) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


@pytest.mark.parametrize("max_length", [1, 10, 16, 100, 512, 8192])
@pytest.mark.parametrize(
    "budget", [Budget(max_tokens=128, max_rows=8), Budget(max_tokens=16384, max_rows=256)]
)
@pytest.mark.parametrize("gpu", [False, True])
def test_shapes_stay_within_the_budget_the_largest_first(max_length: int, budget: Budget, gpu: bool) -> None:
    shapes = shape_classes(budget, max_length, gpu=gpu)
    assert all(1 <= length <= max_length for shape in shapes for length in shape)
    assert all(budget.fits(len(shape), max(shape), sum(shape)) for shape in shapes)
    assert [sum(shape) for shape in shapes] == sorted((sum(shape) for shape in shapes), reverse=True)
    more = [*shapes[0], shapes[0][0]]
    assert not budget.fits(len(more), max(more), sum(more))


def test_a_gpu_engine_meets_every_doubling_of_a_single_row() -> None:
    shapes = shape_classes(Budget(max_tokens=16384, max_rows=64), 512, gpu=True)
    assert [shape[0] for shape in shapes if len(shape) == 1] == [512, 256, 128, 64, 32, 16]
    assert [(len(shape), shape[0]) for shape in shapes if len(shape) > 1] == [
        (32, 512),
        (64, 128),
        (64, 32),
        (64, 16),
    ]


def test_warm_up_runs_every_shape() -> None:
    engine, shapes = Recording(), [[8, 8], [4]]
    warm_up(engine, ROW, shapes)
    assert engine.seen == shapes


def test_an_engine_that_gives_nan_is_not_ready() -> None:
    with pytest.raises(EngineError, match="NaN or infinity"):
        warm_up(Recording(float("nan")), ROW, [[4]])
