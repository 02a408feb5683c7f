"""Which rows are used to look for an influence of neighbours and padding."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bei.compiler.parity.probes import ROWS, choose, probe
from bei.manifest import Limits
from bei.runtime.executor import Row
from tests.compiler.parity.fakes import FakeEngine

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=60)


@given(LENGTHS, st.integers(500, 5000), st.integers(1, 64))
def test_calls_stay_within_the_engines_limits(lengths: list[int], tokens: int, rows: int) -> None:
    limits = Limits(max_length=500, max_batch_tokens=tokens, max_batch=rows)
    for chosen in choose(lengths, limits):
        assert 1 <= len(chosen) <= min(rows, ROWS)
        assert len(set(chosen)) == len(chosen)
        assert max(lengths[i] for i in chosen) * len(chosen) <= tokens


@given(LENGTHS)
def test_shortest_and_longest_meet_whenever_two_fit(lengths: list[int]) -> None:
    limits = Limits(max_length=500, max_batch_tokens=1000, max_batch=64)
    _, mixed = choose(lengths, limits)
    chosen = [lengths[i] for i in mixed]
    assert min(chosen) == min(lengths)
    assert max(chosen) == max(lengths)


def test_level_rows_are_of_about_one_length() -> None:
    lengths = [*range(1, 100), 4000]
    level, _ = choose(lengths, Limits(max_length=4000, max_batch_tokens=16000, max_batch=64))
    chosen = [lengths[i] for i in level]
    assert len(chosen) == ROWS
    assert max(chosen) - min(chosen) < ROWS


def test_an_engine_that_takes_one_row_a_call_has_no_neighbours() -> None:
    engine = FakeEngine(limits=Limits(max_length=64, max_batch_tokens=640, max_batch=1))
    rows = [Row(ids=np.ones(n, np.int32), types=np.zeros(n, np.int32)) for n in (3, 9, 60)]
    found = probe("embed", rows, engine.run, engine.limits)
    assert (found.batch_difference, found.padding_difference, found.non_finite) == (None, None, 0)


def test_rows_that_are_not_finite_are_counted() -> None:
    rows = [Row(ids=np.ones(n, np.int32), types=np.zeros(n, np.int32)) for n in (3, 9, 60)]

    def run(batch: list[Row]) -> list[np.ndarray[tuple[int], np.dtype[np.float32]]]:
        return [
            np.full(4, np.nan if row.ids.size < max(r.ids.size for r in batch) else 1, np.float32)
            for row in batch
        ]

    found = probe("embed", rows, run, Limits(max_length=64, max_batch_tokens=640, max_batch=8))
    assert found.non_finite > 0
    assert found.padding_difference == 0
