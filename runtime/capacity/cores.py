"""What work takes when it shares a machine: processor sharing in virtual time.

Two kinds of work: a thread of the host (event loop, tokenizer) of so many CPU seconds, and an engine's call, whose time
depends on how many calls are in flight. An engine on the CPU has threads of its own that want the same cores; when more
threads want one than there are cores, all go slower by the same factor, as under a fair kernel.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

from bei.runtime.capacity.virtual_time import VirtualLoop

DONE = 1e-9
"""Share of a job that is rounding."""


@dataclass(eq=False, slots=True)
class Job:
    """``seconds[k - 1]``: how long it takes with ``k`` of its kind in flight, and nothing else in the way."""

    seconds: Sequence[float]
    done: "asyncio.Future[None]"
    left: float = 1.0

    def rate(self, in_flight: int) -> float:
        """The share done in a second."""
        return 1 / self.seconds[min(in_flight, len(self.seconds)) - 1]


class Cores:
    """``cores`` of one machine; its engine keeps ``engine_threads`` of them busy (0: it computes elsewhere)."""

    def __init__(self, loop: VirtualLoop, *, cores: int, engine_threads: int) -> None:
        self._loop = loop
        self._cores = cores
        self._engine_threads = engine_threads
        self._threads: list[Job] = []
        self._calls: list[Job] = []
        self._since = loop.time()
        self._alarm: asyncio.TimerHandle | None = None
        self._last_call = -math.inf
        self.engine_busy = 0.0
        """Seconds in which at least one call was in flight."""

    @property
    def engine_rest(self) -> float:
        """Seconds since the last call ended; 0 while one is in flight."""
        return 0.0 if self._calls else self._loop.time() - self._last_call

    def thread(self, seconds: float) -> "asyncio.Future[None]":
        """Done when one thread has had so many CPU seconds."""
        return self._begin(self._threads, (seconds,))

    def call(self, seconds: Sequence[float]) -> "asyncio.Future[None]":
        """Done when an engine's call has run that takes ``seconds[k - 1]`` with ``k`` in flight."""
        return self._begin(self._calls, seconds)

    def _begin(self, jobs: list[Job], seconds: Sequence[float]) -> "asyncio.Future[None]":
        job = Job(seconds, self._loop.create_future())
        if min(seconds) <= 0:
            job.done.set_result(None)
            return job.done
        self._catch_up()
        jobs.append(job)
        self._set_alarm()
        return job.done

    def _catch_up(self) -> None:
        """What was done since the set of jobs last changed."""
        now = self._loop.time()
        elapsed, self._since = now - self._since, now
        for job, rate in self._rates():
            job.left -= elapsed * rate
        if self._calls:
            self.engine_busy += elapsed

    def _rates(self) -> list[tuple[Job, float]]:
        wanted = len(self._threads) + (self._engine_threads if self._calls else 0)
        share = min(1.0, self._cores / wanted) if wanted else 1.0
        of_call = share if self._engine_threads else 1.0
        rates = [(job, share * job.rate(1)) for job in self._threads]
        return rates + [(job, of_call * job.rate(len(self._calls))) for job in self._calls]

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        nearest = min(
            ((job.left / rate, job) for job, rate in self._rates()), key=itemgetter(0), default=None
        )
        self._alarm = None
        if nearest is not None:
            seconds, job = nearest
            self._alarm = self._loop.call_later(max(0.0, seconds), self._finish, job)

    def _finish(self, first: Job) -> None:
        """``first`` is done, and what happens to be done with it."""
        self._catch_up()
        first.left = 0.0
        if self._calls:
            self._last_call = self._since
        for jobs in (self._threads, self._calls):
            for job in [job for job in jobs if job.left <= DONE]:
                jobs.remove(job)
                job.done.set_result(None)
        self._set_alarm()
