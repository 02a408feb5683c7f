"""Several engines behind one scheduler: what happens to them, and to the work, when some fail."""

import asyncio
import time
from collections.abc import Sequence

import pytest
from tests.runtime.test_scheduler import Fake, blocked, queued, row, scheduled, values

from bei.errors import EngineError, EngineLost, InputError
from bei.runtime import stages
from bei.runtime.executor import Output, Row
from bei.runtime.replica import MAX_FAULTS
from bei.runtime.scheduler import AHEAD, TRIES, BatchFacts, Scheduler


class Failing(Fake):
    """Raises ``error`` on every batch, once ``after`` batches have gone well."""

    def __init__(self, error: Exception, after: int = 0) -> None:
        super().__init__()
        self.error, self.after = error, after

    def run(self, rows: list[Row]) -> list[Output]:
        answer = super().run(rows)
        if len(self.batches) > self.after:
            raise self.error
        return answer


async def ask(scheduler: Scheduler, count: int) -> list[int]:
    """Requests one after the other, each with a row that fills a batch."""
    return [(await values(scheduler, row(number, 60)))[0] for number in range(count)]


async def until_used(scheduler: Scheduler, fake: Fake) -> None:
    """Ask in pairs until ``fake`` has had work: which idle replica takes a batch is not defined."""
    while not fake.batches:
        await asyncio.gather(*(values(scheduler, row(number, 60)) for number in range(4)))


async def fill(
    scheduler: Scheduler, *fakes: Fake, numbers: Sequence[int] = ()
) -> list["asyncio.Task[list[int]]"]:
    """With all gates closed: a batch in every engine and one at its door, in the engines' order, so that what follows stays
    in the queue. Batches beyond ``numbers`` have numbers of their own."""
    places = len(fakes) * (1 + AHEAD)
    rows = [row(number, 60) for number in (*numbers, *range(1000, 1000 + places))][:places]
    tasks = [asyncio.create_task(values(scheduler, one)) for one in rows]
    for fake in fakes:
        await fake.wait_entered()
    while scheduler.queued_tokens:
        await asyncio.sleep(0)
    return tasks


def test_a_lost_replica_is_taken_out_and_its_work_goes_to_another() -> None:
    lost, good = Failing(EngineLost("the device is gone")), Fake()

    async def test(scheduler: Scheduler) -> None:
        await until_used(scheduler, lost)
        assert (scheduler.replicas, scheduler.replicas_alive) == (2, 1)
        tried = len(lost.batches)
        assert await ask(scheduler, 20) == list(range(20))
        assert len(lost.batches) == tried
        assert scheduler.counts.failed_batches == 0
        assert tried <= scheduler.counts.retried_batches <= tried + AHEAD

    scheduled(test, lost, good)


def test_a_replica_that_fails_what_others_can_is_taken_out() -> None:
    bad, good = Failing(ValueError("boom")), Fake()

    async def test(scheduler: Scheduler) -> None:
        while scheduler.replicas_alive == 2:
            assert await asyncio.gather(*(ask(scheduler, 1) for _ in range(4))) == [[0]] * 4
        assert len(bad.batches) >= MAX_FAULTS
        assert await ask(scheduler, 10) == list(range(10))
        assert scheduler.counts.failed_batches == 0

    scheduled(test, bad, good)


def test_a_batch_that_fails_everywhere_takes_no_replica_out() -> None:
    fakes = [Fake(poison=[13]) for _ in range(3)]

    async def test(scheduler: Scheduler) -> None:
        for _ in range(3 * MAX_FAULTS):
            with pytest.raises(EngineError, match="boom"):
                await values(scheduler, row(13))
        assert scheduler.replicas_alive == 3
        assert sum(len(fake.batches) for fake in fakes) == 3 * MAX_FAULTS * TRIES
        assert await values(scheduler, row(1)) == [1]

    scheduled(test, *fakes)


def test_a_batch_that_kills_engines_does_not_reach_all_of_them() -> None:
    class Mortal(Fake):
        def run(self, rows: list[Row]) -> list[Output]:
            if int(rows[0].ids[0]) == 13:
                raise EngineLost("illegal address")
            return super().run(rows)

    async def test(scheduler: Scheduler) -> None:
        with pytest.raises(EngineLost, match="illegal address"):
            await values(scheduler, row(13))
        assert scheduler.replicas_alive == 1
        assert await values(scheduler, row(1)) == [1]

    scheduled(test, Mortal(), Mortal(), Mortal())


@pytest.mark.parametrize("dying_first", [True, False])
def test_an_engine_that_dies_takes_no_neighbours_of_a_request_that_raises_with_it(dying_first: bool) -> None:
    """A batch that meets a dying engine, and on the other one fails because of one of its requests; or the other way round."""
    dying, good = Failing(EngineLost("gone"), after=1 + AHEAD), Fake(poison=[13], open_gate=False)
    dying.gate.clear()
    first, second = (dying, good) if dying_first else (good, dying)

    async def test(scheduler: Scheduler) -> None:
        before = await fill(scheduler, dying, good)
        tasks = [asyncio.create_task(values(scheduler, row(value))) for value in (12, 13, 14)]
        await queued(scheduler, 12)
        first.gate.set()
        while [12, 13, 14] not in first.batches:
            await asyncio.sleep(0)
        second.gate.set()
        assert await tasks[0] == [12]
        with pytest.raises(EngineError, match="fake: ValueError: boom") as error:
            await tasks[1]
        assert not isinstance(error.value, EngineLost)
        assert await tasks[2] == [14]
        assert [12, 13, 14] in second.batches
        assert scheduler.replicas_alive == 1
        await asyncio.gather(*before)

    scheduled(test, dying, good)


def test_what_waits_behind_a_batch_that_kills_engines_is_answered() -> None:
    """It is moved from door to door, and had no part in any of the deaths."""

    class Mortal(Fake):
        def run(self, rows: list[Row]) -> list[Output]:
            answer = super().run(rows)
            if int(rows[0].ids[0]) == 13:
                raise EngineLost("illegal address")
            return answer

    fakes = [Mortal(open_gate=False) for _ in range(TRIES + 1)]

    async def test(scheduler: Scheduler) -> None:
        killer, behind, *others = await fill(scheduler, *fakes, numbers=(13, 5))
        for dead, fake in enumerate(fakes[:TRIES], 1):
            fake.gate.set()
            while scheduler.replicas_alive > len(fakes) - dead:
                await asyncio.sleep(0)
        fakes[-1].gate.set()
        with pytest.raises(EngineLost, match="illegal address"):
            await killer
        assert await behind == [5]
        await asyncio.gather(*others)
        assert all([5] not in fake.batches for fake in fakes[:TRIES])

    scheduled(test, *fakes)


def test_input_that_an_engine_refuses_is_not_tried_elsewhere() -> None:
    fakes = [Failing(InputError("row 0: no tokens")) for _ in range(2)]

    async def test(scheduler: Scheduler) -> None:
        with pytest.raises(EngineError, match="no tokens"):
            await values(scheduler, row(1))
        assert sum(len(fake.batches) for fake in fakes) == 1

    scheduled(test, *fakes)


def test_without_an_engine_all_that_waits_and_all_that_comes_is_refused() -> None:
    fake = Failing(EngineLost("the device is gone"))
    fake.gate.clear()

    async def test(scheduler: Scheduler) -> None:
        first = await blocked(scheduler, fake)
        waiting = asyncio.create_task(values(scheduler, row(5)))
        await queued(scheduler, 4)
        fake.gate.set()
        for task in (*first, waiting):
            with pytest.raises(EngineLost):
                await task
        assert scheduler.replicas_alive == 0
        assert scheduler.queued_tokens == 0
        with pytest.raises(EngineLost, match="no engine is left"):
            await values(scheduler, row(6))

    scheduled(test, fake)


def test_the_only_engine_stays_in_service_when_it_fails() -> None:
    async def test(scheduler: Scheduler) -> None:
        for _ in range(2 * MAX_FAULTS):
            with pytest.raises(EngineError, match="boom"):
                await values(scheduler, row(13))
        assert await values(scheduler, row(1)) == [1]

    scheduled(test, Fake(poison=[13]))


def test_work_given_up_at_the_engines_door_is_not_run() -> None:
    fake = Fake(open_gate=False)

    async def test(scheduler: Scheduler) -> None:
        first, at_the_door = await blocked(scheduler, fake)
        at_the_door.cancel()
        with pytest.raises(asyncio.CancelledError):
            await at_the_door
        fake.gate.set()
        assert await first == [1000]
        assert await values(scheduler, row(8)) == [8]
        assert fake.batches == [[1000], [8]]
        assert scheduler.counts.rows == 2

    scheduled(test, fake)


@pytest.mark.parametrize("error", [EngineLost("gone"), ValueError("boom")])
def test_every_request_of_a_crowd_is_answered_right_while_a_replica_dies(error: Exception) -> None:
    fakes: Sequence[Fake] = (Failing(error, after=5), Fake(), Fake())

    async def test(scheduler: Scheduler) -> None:
        work = (values(scheduler, row(n, 1 + n % 30), row(n + 1, 9)) for n in range(400))
        assert await asyncio.gather(*work) == [[n, n + 1] for n in range(400)]
        assert scheduler.counts.failed_batches == 0

    scheduled(test, *fakes)


def test_a_record_holds_the_stages_and_the_size_of_its_request() -> None:
    async def test(scheduler: Scheduler) -> None:
        facts: list[BatchFacts] = []
        scheduler.on_batch = facts.append
        before = time.perf_counter()
        record = stages.begin()
        with stages.stage("tokenize"):
            pass
        await values(scheduler, row(1, 5), row(2, 3))
        assert [stage.name for stage in record.stages] == ["tokenize", "queue", "run"]
        assert (record.rows, record.tokens) == (2, 8)
        times = [t for stage in record.stages for t in (stage.began, stage.ended)]
        assert times == sorted(times)
        assert before <= times[0]
        assert times[-1] <= time.perf_counter()
        assert record.seconds("run") == pytest.approx(times[-1] - times[-2])
        assert sum(fact.tokens for fact in facts) == 8
        assert all(fact.slots >= fact.tokens for fact in facts)

    scheduled(test, Fake())


def test_slots_count_padding() -> None:
    async def test(scheduler: Scheduler) -> None:
        await scheduler.run([row(1, 8), row(2, 7)])
        counts = scheduler.counts
        assert (counts.batches, counts.tokens, counts.slots) == (1, 15, 16)

    scheduled(test, Fake())
