"""Every row comes out once, in batches that fit and waste little, and nobody waits behind bulk work."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bei.runtime.batching import Budget
from bei.runtime.executor import Row
from bei.runtime.fair_queue import TURN, Entry, FairQueue, Ticket

BUDGET = Budget(max_tokens=512, max_rows=32, max_waste=0.25)
BUDGETS = st.builds(
    Budget,
    max_tokens=st.integers(1, 2000),
    max_rows=st.integers(1, 40),
    padded=st.booleans(),
    max_waste=st.floats(0, 0.9),
)
REQUESTS = st.lists(st.lists(st.integers(1, 600), min_size=1, max_size=30), min_size=1, max_size=12)


def rows(*lengths: int) -> list[Row]:
    return [Row(ids=np.zeros(n, np.int32), types=np.zeros(n, np.int32)) for n in lengths]


def pushed(queue: FairQueue, *lengths: int) -> Ticket:
    ticket = Ticket()
    queue.push(ticket, rows(*lengths))
    return ticket


def drained(queue: FairQueue, budget: Budget = BUDGET) -> list[list[Entry]]:
    batches = []
    while batch := queue.take(budget):
        batches.append(batch)
    return batches


def slots(batch: Sequence[Entry]) -> int:
    return len(batch) * max(entry.length for entry in batch)


@given(REQUESTS, BUDGETS)
def test_every_row_comes_out_once_in_batches_that_fit(requests: list[list[int]], budget: Budget) -> None:
    queue = FairQueue()
    tickets = [pushed(queue, *lengths) for lengths in requests]
    assert queue.tokens == sum(map(sum, requests))
    seen = []
    for batch in drained(queue, budget):
        real = sum(entry.length for entry in batch)
        used = slots(batch) if budget.padded else real
        assert len(batch) == 1 or (used <= budget.max_tokens and len(batch) <= budget.max_rows)
        assert not budget.padded or slots(batch) - real <= budget.max_waste * slots(batch)
        seen += [(tickets.index(entry.ticket), entry.place, entry.length) for entry in batch]
    want = [(t, place, n) for t, lengths in enumerate(requests) for place, n in enumerate(lengths)]
    assert sorted(seen) == want
    assert (queue.tokens, len(queue)) == (0, 0)


@given(REQUESTS, st.data())
def test_dropped_requests_never_come_out(requests: list[list[int]], data: st.DataObject) -> None:
    queue = FairQueue()
    tickets = [pushed(queue, *lengths) for lengths in requests]
    served = [entry for _ in range(data.draw(st.integers(0, 3))) for entry in queue.take(BUDGET)]
    gone = data.draw(st.sets(st.integers(0, len(requests) - 1)))
    for index in gone:
        queue.drop(tickets[index])
        queue.drop(tickets[index])  # twice is once
    left = [(entry.ticket, entry.place) for batch in drained(queue) for entry in batch]
    before = {(entry.ticket, entry.place) for entry in served}
    want = {(t, p) for i, t in enumerate(tickets) if i not in gone for p in range(len(requests[i]))}
    assert set(left) == want - before
    assert len(left) == len(set(left))
    assert (queue.tokens, len(queue)) == (0, 0)


@pytest.mark.parametrize("length", [1, 7, 40, 128, 500])
def test_a_single_query_goes_at_once_however_much_bulk_waits(length: int) -> None:
    queue = FairQueue()
    pushed(queue, *range(2, 128), *[40] * 1900)
    for _ in range(5):
        queue.take(BUDGET)
    single = pushed(queue, length)
    assert single in {entry.ticket for _ in range(2) for entry in queue.take(BUDGET)}


def test_a_hundred_queries_all_go_before_the_bulk_does() -> None:
    queue = FairQueue()
    pushed(queue, *[60] * 2000)
    queue.take(BUDGET)
    queries = {pushed(queue, 10 + n % 20) for n in range(100)}
    for _ in range(25):  # 100 queries of 20 tokens are 4 batches' worth; bulk takes its share meanwhile
        queries -= {entry.ticket for entry in queue.take(BUDGET)}
    assert not queries


def test_bulk_work_is_not_starved_by_endless_queries() -> None:
    queue = FairQueue()
    bulk = pushed(queue, *[100] * 100)
    for batch in range(2000):
        for _ in range(30):  # more than one batch serves
            pushed(queue, 20)
        queue.take(BUDGET)
        if not bulk.waiting:
            assert batch > 20  # it did not get everything at once either
            return
    pytest.fail("the bulk request never finished")


def test_two_bulk_requests_share_by_tokens() -> None:
    queue = FairQueue()
    short, long = pushed(queue, *[10] * 2000), pushed(queue, *[100] * 200)
    while short.tokens + long.tokens > 40_000 - 4 * TURN:
        queue.take(BUDGET)
    served = 20_000 - short.tokens, 20_000 - long.tokens
    assert 0.7 < served[0] / served[1] < 1.4


def test_requests_of_a_usual_size_are_done_one_after_the_other() -> None:
    """Side by side all of them would end with the last."""
    queue = FairQueue()
    tickets = [pushed(queue, *[50 + n % 7 for n in range(32)]) for _ in range(8)]
    total = queue.tokens
    ends: dict[Ticket, float] = {}
    while queue.take(BUDGET):
        ends |= {t: 1 - queue.tokens / total for t in tickets if not t.waiting and t not in ends}
    assert [ends[ticket] for ticket in tickets] == sorted(ends.values())
    assert ends[tickets[0]] < 0.25
    assert np.mean(list(ends.values())) < 0.65


@pytest.mark.parametrize("served", [0, 1000, TURN - 100, TURN, 3 * TURN + 50])
def test_a_query_waits_for_no_turn_of_bulk_work(served: int) -> None:
    """At most for what is left of one that would be done before it anyhow."""
    queue = FairQueue()
    bulk = pushed(queue, *[40] * 2000)
    while 80_000 - bulk.tokens < served:
        queue.take(BUDGET)
    single = pushed(queue, 300)
    before = bulk.tokens
    while single.waiting:
        queue.take(BUDGET)
    assert before - bulk.tokens <= 300 + 2 * BUDGET.max_tokens


def test_rows_of_different_requests_share_a_batch() -> None:
    queue = FairQueue()
    tickets = {pushed(queue, 10 + n % 2) for n in range(8)}
    assert {entry.ticket for entry in queue.take(BUDGET)} == tickets


def test_memory_of_dropped_requests_is_let_go() -> None:
    queue = FairQueue()
    pushed(queue, 5)
    for _ in range(100):
        queue.drop(pushed(queue, *range(1, 200)))
    assert sum(map(len, queue._classes.values())) < 1000
