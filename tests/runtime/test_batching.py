"""Plans hold every row once, stay within the budget, and pad little."""

from dataclasses import replace
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.tiny import engine

from bei.manifest import Limits, Profile
from bei.runtime.batching import CPU_BATCH_TOKENS, Budget, budget_for, plan

LENGTHS = st.lists(st.integers(1, 600), max_size=200)
BUDGETS = st.builds(
    Budget, max_tokens=st.integers(1, 2000), max_rows=st.integers(1, 40), padded=st.booleans()
)
PROFILES = tuple(Profile(max_batch=b, max_length=n, max_tokens=b * n) for b, n in ((30, 60), (3, 600)))


@given(LENGTHS, BUDGETS)
def test_every_row_exactly_once(lengths: list[int], budget: Budget) -> None:
    assert sorted(chain.from_iterable(plan(lengths, budget))) == list(range(len(lengths)))


@given(LENGTHS, BUDGETS)
def test_the_budget_holds_except_for_a_row_alone(lengths: list[int], budget: Budget) -> None:
    for batch in plan(lengths, budget):
        real = sum(lengths[i] for i in batch)
        tokens = len(batch) * max(lengths[i] for i in batch) if budget.padded else real
        assert len(batch) == 1 or (tokens <= budget.max_tokens and len(batch) <= budget.max_rows)


@given(LENGTHS.filter(bool), BUDGETS)
def test_padding_is_bounded(lengths: list[int], budget: Budget) -> None:
    batches = plan(lengths, budget)
    slots = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert slots - sum(lengths) <= budget.max_rows * (max(lengths) - min(lengths))


@given(st.integers(1, 300), st.integers(1, 64), BUDGETS)
def test_equal_rows_fill_their_batches(count: int, length: int, budget: Budget) -> None:
    per_batch = max(1, min(budget.max_rows, budget.max_tokens // length))
    assert len(plan([length] * count, budget)) == -(-count // per_batch)


@given(LENGTHS, BUDGETS)
def test_every_batch_fits_a_profile(lengths: list[int], budget: Budget) -> None:
    for batch in plan(lengths, replace(budget, profiles=PROFILES)):
        longest, real = max(lengths[i] for i in batch), sum(lengths[i] for i in batch)
        assert any(
            len(batch) <= p.max_batch and longest <= p.max_length and real <= p.max_tokens for p in PROFILES
        )


@given(st.integers(1, 600), BUDGETS)
def test_the_most_rows_of_a_length(length: int, budget: Budget) -> None:
    for one in (budget, replace(budget, profiles=PROFILES)):
        rows = one.rows(length)
        assert one.fits(rows, length, rows * length)
        assert not one.fits(rows + 1, length, (rows + 1) * length)


def test_the_engine_decides_the_budget() -> None:
    limits = Limits(max_length=512, max_batch_tokens=65536, max_batch=64)
    assert budget_for(engine(), limits).max_tokens == CPU_BATCH_TOKENS
    gpu = budget_for(engine(device="cuda", layout="packed"), limits)
    assert (gpu.max_tokens, gpu.max_rows, gpu.padded) == (65536, 64, False)
    assert budget_for(engine(), limits, 10**9).max_tokens == 65536
    assert budget_for(engine(device="cuda", profiles=PROFILES), limits).rows(61) == 3
