"""An engine whose call never returns: what is judged as hanging, and what becomes of the work that it had."""

import asyncio

import pytest
from tests.runtime.test_scheduler import BUDGET, Fake, blocked, queued, row, scheduled, values

from bei.errors import EngineLost
from bei.runtime.executor import Output, Row
from bei.runtime.fair_queue import Entry, Ticket
from bei.runtime.pace import FACTOR, REMEMBERED, Pace
from bei.runtime.replica import Replica, Unserved
from bei.runtime.scheduler import Scheduler

SOON = 0.05
NEVER = 1000.0


def test_before_anything_has_run_the_floor_is_the_limit() -> None:
    assert Pace(30).limit(10_000) == 30


def test_the_limit_grows_with_what_batches_took_and_with_their_tokens() -> None:
    pace = Pace(30)
    for _ in range(99):
        pace.note(100, 0.1)  # a millisecond a token
    assert pace.limit(128) == 30
    assert pace.limit(10_000) == pytest.approx(FACTOR * 10_000 * 0.001)
    pace.note(100, 100)  # one in a hundred is no measure of the others
    assert pace.limit(10_000) == pytest.approx(FACTOR * 10_000 * 0.001)
    pace.note(100, 100)
    assert pace.limit(10_000) == pytest.approx(FACTOR * 10_000)
    for _ in range(REMEMBERED):
        pace.note(100, 0.1)
    assert pace.limit(10_000) == pytest.approx(FACTOR * 10_000 * 0.001)


def test_the_work_of_an_engine_that_hangs_is_done_by_another() -> None:
    """The batch that hangs, and the one at its door."""
    hung, good = Fake(open_gate=False), Fake(open_gate=False)

    async def test(scheduler: Scheduler) -> None:
        pace = scheduler._replicas[0]._pace = Pace(SOON)
        requests = [asyncio.create_task(values(scheduler, row(number, 60))) for number in range(8)]
        await hung.wait_entered()
        good.gate.set()
        assert await asyncio.gather(*requests) == [[number] for number in range(8)]
        assert (scheduler.replicas, scheduler.replicas_alive) == (2, 1)
        assert len(hung.batches) == 1
        assert scheduler.counts.failed_batches == 0
        assert scheduler.counts.retried_batches > 0
        hung.gate.set()  # it returns after all: nobody waits for it
        assert await values(scheduler, row(9)) == [9]
        assert scheduler.replicas_alive == 1
        assert pace.limit(60) == SOON

    scheduled(test, hung, good, hang_seconds=NEVER)


def test_what_waits_behind_a_call_that_hangs_never_reaches_that_engine() -> None:
    """And is told from the batch that hangs: it had no part in it."""
    fake = Fake(open_gate=False)

    async def test(scheduler: Scheduler) -> None:
        replica = Replica(fake, 1, BUDGET, Pace(SOON))
        hanging, behind = (
            replica.run([Entry(0, number, 4, Ticket(), 0, row(number))]) for number in range(2)
        )
        with pytest.raises(EngineLost) as error:
            await hanging
        assert not isinstance(error.value, Unserved)
        with pytest.raises(Unserved, match="its engine hangs"):
            await behind
        fake.gate.set()
        replica._threads.shutdown()
        assert fake.batches == [[0]]

    scheduled(test, Fake())


def test_without_another_engine_everybody_is_told() -> None:
    fake = Fake(open_gate=False)

    async def test(scheduler: Scheduler) -> None:
        first = await blocked(scheduler, fake)
        waiting = asyncio.create_task(values(scheduler, row(5)))
        await queued(scheduler, 4)
        for task in (*first, waiting):
            with pytest.raises(EngineLost):
                await task
        assert not scheduler.open
        with pytest.raises(EngineLost, match="no engine is left"):
            await values(scheduler, row(6))

    scheduled(test, fake, hang_seconds=0.5)


def test_a_batch_that_makes_engines_hang_does_not_reach_all_of_them() -> None:
    class Sticky(Fake):
        def run(self, rows: list[Row]) -> list[Output]:
            if int(rows[0].ids[0]) == 13:
                self.gate.clear()
            return super().run(rows)

    fakes = [Sticky() for _ in range(3)]

    async def test(scheduler: Scheduler) -> None:
        with pytest.raises(EngineLost, match=r"fake: a batch has been running for \d+ s .*hangs. Restart"):
            await values(scheduler, row(13))
        assert scheduler.replicas_alive == 1
        assert await values(scheduler, row(1)) == [1]

    scheduled(test, *fakes, hang_seconds=1.0)


def test_an_engine_that_is_slow_as_always_does_not_hang() -> None:
    """The alarm rings, and the time that such batches have been taking decides."""
    fake = Fake(open_gate=False)

    async def test(scheduler: Scheduler) -> None:
        scheduler.pace.note(4, 1000)
        asked = 0
        limit = scheduler.pace.limit

        def counted(slots: int) -> float:
            nonlocal asked
            asked += 1
            return limit(slots)

        scheduler.pace.limit = counted  # type: ignore[method-assign]
        request = asyncio.create_task(values(scheduler, row(3)))
        await fake.wait_entered()
        while not asked:
            await asyncio.sleep(0.01)
        fake.gate.set()
        assert await request == [3]
        assert scheduler.replicas_alive == 1

    scheduled(test, fake, hang_seconds=SOON)


def test_a_batch_that_waits_at_the_door_does_not_hang() -> None:
    """Only time within the engine counts: this one waits behind a batch that may take for ever."""
    fake = Fake(open_gate=False)

    async def test(scheduler: Scheduler) -> None:
        scheduler.pace.note(60, 1e6)
        running = asyncio.create_task(values(scheduler, row(1, 60)))
        await fake.wait_entered()
        at_the_door = asyncio.create_task(values(scheduler, row(2, 60)))
        await asyncio.sleep(4 * SOON)
        assert not running.done() and not at_the_door.done()
        fake.gate.set()
        assert (await running, await at_the_door) == ([1], [2])

    scheduled(test, fake, hang_seconds=SOON)
