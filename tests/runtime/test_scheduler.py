"""The scheduler with fake engines: right answers, fairness, cancellation, deadlines, overload, failures, shutdown."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from bei.errors import EngineError, Overloaded, ShuttingDown
from bei.runtime.batching import Budget
from bei.runtime.executor import Output, Row
from bei.runtime.scheduler import AHEAD, Scheduler

BUDGET = Budget(max_tokens=64, max_rows=8)


def row(value: int, length: int = 4) -> Row:
    return Row(ids=np.full(length, value, np.int32), types=np.zeros(length, np.int32))


class Fake:
    """Answers each row with its first id; waits at the gate; fails on the ids in ``poison``."""

    def __init__(self, *, poison: Sequence[int] = (), open_gate: bool = True, concurrency: int = 1) -> None:
        self.target = "fake"
        self.concurrency = concurrency
        self.batches: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.poison = set(poison)
        if open_gate:
            self.gate.set()

    def run(self, rows: list[Row]) -> list[Output]:
        values = [int(row.ids[0]) for row in rows]
        self.batches.append(values)
        self.entered.release()
        assert self.gate.wait(30)
        if self.poison & set(values):
            raise ValueError("boom")
        return [np.array([value], np.float32) for value in values]

    async def wait_entered(self) -> None:
        await asyncio.to_thread(self.entered.acquire)

    def describe(self) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


def scheduled(
    test: Callable[[Scheduler], Coroutine[Any, Any, None]],
    *fakes: Fake,
    max_queue_tokens: int = 10**6,
    hang_seconds: float = 1000.0,
) -> None:
    """Run ``test`` with a started scheduler, close it, and check that no task is left."""

    async def main() -> None:
        scheduler = Scheduler(fakes, BUDGET, max_queue_tokens=max_queue_tokens, hang_seconds=hang_seconds)
        scheduler.start()
        try:
            await asyncio.wait_for(test(scheduler), 30)
        finally:
            for fake in fakes:
                fake.gate.set()
            await scheduler.close(5)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


async def values(scheduler: Scheduler, *rows: Row) -> list[int]:
    return [int(output[0]) for output in await scheduler.run(rows)]


async def queued(scheduler: Scheduler, tokens: int) -> None:
    while scheduler.queued_tokens < tokens:
        await asyncio.sleep(0)


async def blocked(scheduler: Scheduler, fake: Fake) -> list["asyncio.Task[list[int]]"]:
    """One request in the engine and one at its door, so that what follows stays in the queue."""
    tasks = []
    for value in range(1 + AHEAD):
        tasks.append(asyncio.create_task(values(scheduler, row(1000 + value))))
        await asyncio.sleep(0.01)
    await fake.wait_entered()
    return tasks


def test_outputs_come_in_the_order_of_the_rows() -> None:
    async def test(scheduler: Scheduler) -> None:
        rows = [row(value, 1 + value * 7 % 30) for value in range(200)]
        assert await values(scheduler, *rows) == list(range(200))
        assert await values(scheduler) == []

    scheduled(test, Fake())


def test_requests_share_batches() -> None:
    fake = Fake(open_gate=False)

    async def test(scheduler: Scheduler) -> None:
        first = await blocked(scheduler, fake)
        many = [asyncio.create_task(values(scheduler, row(value))) for value in range(8)]
        await queued(scheduler, 8 * 4)
        fake.gate.set()
        assert await asyncio.gather(*many) == [[value] for value in range(8)]
        await asyncio.gather(*first)
        assert sorted(fake.batches[-1]) == list(range(8))

    scheduled(test, fake)


def test_a_query_is_not_stuck_behind_bulk_work() -> None:
    fake = Fake(open_gate=False)

    async def test(scheduler: Scheduler) -> None:
        bulk = asyncio.create_task(scheduler.run([row(1, 10)] * 2000))
        await fake.wait_entered()
        query = asyncio.create_task(values(scheduler, row(2, 3)))
        await queued(scheduler, 3)
        await asyncio.sleep(0.01)
        fake.gate.set()
        assert await query == [2]
        assert len(await bulk) == 2000
        assert next(n for n, batch in enumerate(fake.batches) if 2 in batch) <= 1 + AHEAD
        assert len(fake.batches) > 200

    scheduled(test, fake)


def test_a_cancelled_request_never_reaches_the_engine() -> None:
    fake = Fake(open_gate=False)

    async def test(scheduler: Scheduler) -> None:
        first = await blocked(scheduler, fake)
        gone = asyncio.create_task(values(scheduler, *[row(7)] * 100))
        await queued(scheduler, 400)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert scheduler.queued_tokens == 0
        fake.gate.set()
        await asyncio.gather(*first)
        assert await values(scheduler, row(8)) == [8]
        assert not any(7 in batch for batch in fake.batches)
        assert scheduler.counts.dropped_requests == 1

    scheduled(test, fake)


def test_overload_is_refused_with_a_time_to_come_back() -> None:
    fake = Fake(open_gate=False)

    async def test(scheduler: Scheduler) -> None:
        first = await blocked(scheduler, fake)
        big = asyncio.create_task(values(scheduler, *[row(1, 30)] * 10))  # an empty queue takes any request
        await queued(scheduler, 300)
        with pytest.raises(Overloaded, match=r"300 tokens are queued, at most 100") as refused:
            await values(scheduler, row(2))
        assert refused.value.retry_after > 0
        with pytest.raises(Overloaded), scheduler.reserve(1):
            pass
        assert scheduler.counts.refused_requests == 2
        fake.gate.set()
        await asyncio.gather(big, *first)
        assert await values(scheduler, row(2)) == [2]

    scheduled(test, fake, max_queue_tokens=100)


def test_reserved_tokens_count_as_queued() -> None:
    async def test(scheduler: Scheduler) -> None:
        with scheduler.reserve(90):
            assert scheduler.queued_tokens == 90
            with pytest.raises(Overloaded):
                await values(scheduler, row(1, 20))
        assert scheduler.queued_tokens == 0
        assert await values(scheduler, row(1, 20)) == [1]

    scheduled(test, Fake(), max_queue_tokens=100)


def test_the_wait_is_estimated_from_measured_throughput() -> None:
    async def test(scheduler: Scheduler) -> None:
        assert scheduler.retry_after() == 1.0  # nothing measured yet
        await scheduler.run([row(1)] * 50)
        assert scheduler.tokens_per_second > 0
        with scheduler.reserve(int(scheduler.tokens_per_second * 3)):
            assert 2 < scheduler.retry_after() <= 3

    scheduled(test, Fake(), max_queue_tokens=10**12)


def test_a_failure_reaches_exactly_the_requests_of_its_batch() -> None:
    fake = Fake(poison=[13], open_gate=False)

    async def test(scheduler: Scheduler) -> None:
        first = await blocked(scheduler, fake)
        bad = [asyncio.create_task(values(scheduler, row(13, 40), row(1, 3)))]
        bad.append(asyncio.create_task(values(scheduler, row(3, 3))))
        fine = asyncio.create_task(values(scheduler, row(2, 20)))
        await queued(scheduler, 66)
        fake.gate.set()
        with pytest.raises(EngineError, match="fake: ValueError: boom"):
            await bad[0]
        assert await bad[1] == [3]
        assert await fine == [2]
        assert await values(scheduler, row(4)) == [4]
        await asyncio.gather(*first)
        assert scheduler.counts.failed_batches == 1

    scheduled(test, fake)


def test_neighbours_in_a_failed_batch_are_answered() -> None:
    fake = Fake(poison=[13], open_gate=False)

    async def test(scheduler: Scheduler) -> None:
        first = await blocked(scheduler, fake)
        tasks = [asyncio.create_task(values(scheduler, row(value))) for value in (12, 13, 14)]
        await queued(scheduler, 12)
        fake.gate.set()
        assert await tasks[0] == [12]
        with pytest.raises(EngineError, match="boom"):
            await tasks[1]
        assert await tasks[2] == [14]
        assert sorted(fake.batches[2]) == [12, 13, 14]
        await asyncio.gather(*first)

    scheduled(test, fake)


def test_an_engine_that_loses_rows_is_an_error() -> None:
    fake = Fake()
    fake.run = lambda rows: [np.zeros(1, np.float32)]  # type: ignore[method-assign]

    async def test(scheduler: Scheduler) -> None:
        with pytest.raises(EngineError, match="gave 1 outputs for 2 rows"):
            await scheduler.run([row(1), row(2)])

    scheduled(test, fake)


@pytest.mark.parametrize("concurrencies", [(1, 1), (2,), (3, 1)])
def test_every_replica_runs_as_many_batches_as_it_can(concurrencies: tuple[int, ...]) -> None:
    fakes = [Fake(open_gate=False, concurrency=n) for n in concurrencies]

    async def test(scheduler: Scheduler) -> None:
        work = asyncio.create_task(values(scheduler, *[row(value, 30) for value in range(20)]))
        for fake in fakes:
            for _ in range(fake.concurrency):
                await fake.wait_entered()
            await asyncio.sleep(0.01)
            assert len(fake.batches) == fake.concurrency
        for fake in fakes:
            fake.gate.set()
        assert await work == list(range(20))

    scheduled(test, *fakes)


def test_closing_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    fake = Fake(open_gate=False)

    async def test(scheduler: Scheduler) -> None:
        first = await blocked(scheduler, fake)
        accepted = asyncio.create_task(values(scheduler, row(5)))
        await queued(scheduler, 4)
        closing = asyncio.create_task(scheduler.close(20))
        await asyncio.sleep(0.01)
        with pytest.raises(ShuttingDown):
            await values(scheduler, row(6))
        fake.gate.set()
        await closing
        assert await accepted == [5]
        assert await asyncio.gather(*first) == [[1000], [1001]]

    scheduled(test, fake)


def test_closing_gives_up_after_its_limit() -> None:
    fake = Fake(open_gate=False)

    async def test(scheduler: Scheduler) -> None:
        first = await blocked(scheduler, fake)
        await scheduler.close(0.02)
        for task in first:
            with pytest.raises(ShuttingDown, match="before this request was done"):
                await task

    scheduled(test, fake)


def test_a_crowd_with_random_cancellations_gets_right_answers() -> None:
    rng = np.random.default_rng(0)

    async def client(scheduler: Scheduler, number: int) -> bool:
        rows = [row(number * 100 + n, int(rng.integers(1, 30))) for n in range(int(rng.integers(1, 20)))]
        task = asyncio.create_task(values(scheduler, *rows))
        await asyncio.sleep(float(rng.uniform(0, 0.01)))
        if rng.random() < 0.3:
            task.cancel()
        try:
            return await task == [number * 100 + n for n in range(len(rows))]
        except asyncio.CancelledError:
            return True

    async def test(scheduler: Scheduler) -> None:
        assert all(await asyncio.gather(*(client(scheduler, number) for number in range(300))))
        assert scheduler.queued_tokens == 0

    scheduled(test, Fake(), Fake())
