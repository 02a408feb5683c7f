"""Between HTTP and the engines: rows of all requests, batched together, worker threads for each engine.

Pure asyncio around a `FairQueue`; everything but the engines' own calls happens in the event loop.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple, cast

from bei.errors import (
    BeiError,
    EngineError,
    EngineLost,
    InputError,
    Overloaded,
    ShuttingDown,
)
from bei.runtime import stages
from bei.runtime.batching import Budget
from bei.runtime.executor import Executor, Output, Row
from bei.runtime.fair_queue import Entry, FairQueue, Ticket
from bei.runtime.pace import HANG_SECONDS, Pace
from bei.runtime.replica import MAX_FAULTS, Clock, Ran, Replica, StartThreads, Unserved

AHEAD = 1
"""Batches handed to an engine's threads beyond those it runs: they wait at its door instead of behind the loop."""

SMOOTHING = 0.1
"""Weight of the newest batch in the measured throughput."""

RETRY_SECONDS = (0.05, 60.0)

TRIES = 2
"""Replicas that may refuse a batch, and that may be lost with it. Not all of them: a batch that kills engines must not reach
every one."""

NO_ENGINE_LEFT = "no engine is left: every replica has failed for good. Restart the server."


@dataclass(slots=True, eq=False, kw_only=True)
class Request(Ticket):
    """A ticket whose outputs are collected; ``answer`` is set once, with all of them or an error."""

    rows: int
    answer: asyncio.Future[list[Output]]
    outputs: dict[int, Output] = field(default_factory=dict)
    began: float | None = None
    """When an engine took the first of its rows."""


class BatchFacts(NamedTuple):
    """One batch that ran; ``slots`` are the tokens the engine computed, padding included."""

    rows: int
    tokens: int
    slots: int
    seconds: float


@dataclass(slots=True)
class Counts:
    """Since the start; ``seconds`` is engine time, ``slots`` the tokens run including padding."""

    batches: int = 0
    rows: int = 0
    tokens: int = 0
    slots: int = 0
    seconds: float = 0.0
    failed_batches: int = 0
    retried_batches: int = 0
    dropped_requests: int = 0
    refused_requests: int = 0

    @property
    def waste(self) -> float:
        """The share of the computed tokens that was padding."""
        return 1 - self.tokens / self.slots if self.slots else 0.0


class Scheduler:
    """Runs rows on ``executors`` (equal engines). Belongs to one event loop, from `start` to `close`.

    A batch that fails on one engine is tried on another, then each request in it by itself; one that engines die of is
    given up, which is no fault of most requests in it (EngineLost). An engine that is lost, that hangs (see `Pace`), or
    that fails batches which then succeed elsewhere, gets no more work.
    """

    def __init__(
        self,
        executors: Sequence[Executor],
        budget: Budget,
        *,
        max_queue_tokens: int,
        hang_seconds: float = HANG_SECONDS,
        clock: Clock = perf_counter,
        threads: StartThreads = ThreadPoolExecutor,
    ) -> None:
        """``clock`` and ``threads`` are the machine's own; a simulation has others."""
        self.counts = Counts()
        self.pace = Pace(hang_seconds)
        self.on_batch: Callable[[BatchFacts], None] = lambda facts: None
        self.max_queue_tokens = max_queue_tokens
        self.budget = budget
        self._clock, self._threads = clock, threads
        self._executors = executors
        self._queue = FairQueue()
        self._open: set[Request] = set()
        self._reserved = 0
        self._recent_tokens = self._recent_seconds = 0.0
        self._closing = False
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._replicas: list[Replica] = []
        self._workers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the workers in the running event loop."""
        for number, executor in enumerate(self._executors):
            replica = Replica(
                executor, number, self.budget, self.pace, clock=self._clock, threads=self._threads
            )
            self._replicas.append(replica)
            for _ in range(executor.concurrency + AHEAD):
                self._workers.append(asyncio.create_task(self._serve(replica)))

    @property
    def open(self) -> bool:
        """Whether it takes work: it was started, is not closing, and an engine lives."""
        return not self._closing and self.replicas_alive > 0

    @property
    def lost(self) -> bool:
        """Whether it was started and no engine lives any more."""
        return bool(self._replicas) and not self.replicas_alive

    @property
    def lanes(self) -> int:
        """Batches that the living engines run at a time."""
        return sum(replica.executor.concurrency for replica in self._replicas if replica.alive)

    @property
    def replicas(self) -> int:
        """Engines there are, alive or not."""
        return len(self._executors)

    @property
    def replicas_alive(self) -> int:
        """Engines that get work; 0 before the start."""
        return sum(replica.alive for replica in self._replicas)

    @property
    def queued_requests(self) -> int:
        """Requests accepted and not yet answered."""
        return len(self._open)

    @property
    def queued_tokens(self) -> int:
        """Tokens waiting for an engine, and those promised to requests being tokenised."""
        return self._queue.tokens + self._reserved

    @property
    def tokens_per_second(self) -> float:
        """Measured over recent batches, all engines together; 0 before the first."""
        if not self._recent_seconds:
            return 0.0
        return self.lanes * self._recent_tokens / self._recent_seconds

    async def run(self, rows: Sequence[Row]) -> list[Output]:
        """Each row's output, in order; if the caller is cancelled, what still waits is dropped.

        Raises Overloaded or ShuttingDown at once, EngineError when a batch of its rows fails, EngineLost when no engine
        is left.
        """
        if not rows:
            return []
        tokens = sum(len(row.ids) for row in rows)
        self._admit(tokens)
        request = Request(rows=len(rows), answer=asyncio.get_running_loop().create_future())
        self._open.add(request)
        self._idle.clear()
        queued = self._clock()
        try:
            self._queue.push(request, rows)
            self._work.set()
            return await request.answer
        finally:
            self._finish(request)
            _note(request, queued, self._clock(), tokens)

    @contextmanager
    def reserve(self, tokens: int) -> Iterator[None]:
        """Count a request that is still being tokenised as queued. Raises Overloaded, ShuttingDown."""
        self._admit(tokens)
        self._reserved += tokens
        try:
            yield
        finally:
            self._reserved -= tokens

    async def close(self, drain_seconds: float = 0.0) -> None:
        """Take nothing new, give what was accepted ``drain_seconds`` to finish, fail the rest, stop the workers."""
        self._closing = True
        drained = asyncio.ensure_future(self._idle.wait())
        await asyncio.wait([drained], timeout=drain_seconds)
        drained.cancel()
        for request in self._open:
            _fail(request, ShuttingDown("the server stopped before this request was done"))
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        for replica in self._replicas:
            replica.close()

    def retry_after(self) -> float:
        """Seconds until what is queued now will have run, by the measured throughput."""
        if not self.tokens_per_second:
            return 1.0
        low, high = RETRY_SECONDS
        return min(high, max(low, self.queued_tokens / self.tokens_per_second))

    def _admit(self, tokens: int) -> None:
        """Refuse what the queue has no room for; an empty one takes any request, else a big one would never run."""
        if self._closing:
            raise ShuttingDown("the server is shutting down")
        if not self.replicas_alive:
            raise EngineLost(NO_ENGINE_LEFT)
        queued = self.queued_tokens
        if queued and queued + tokens > self.max_queue_tokens:
            self.counts.refused_requests += 1
            raise Overloaded(
                f"the model is overloaded ({queued} tokens are queued, at most {self.max_queue_tokens})",
                self.retry_after(),
            )

    async def _serve(self, replica: Replica) -> None:
        while replica.alive:
            await self._work.wait()
            if not replica.alive:
                return
            batch = self._queue.take(self.budget)
            if batch:
                await self._answer(batch, replica)
            else:
                self._work.clear()

    async def _answer(self, batch: Sequence[Entry], first: Replica, lost: int = 0) -> None:
        """Run a batch, on another replica when the first one fails, and settle who was at fault. ``lost`` counts the engines
        that died of a batch which this one was part of."""
        refused: list[tuple[Replica, Exception]] = []
        for replica in self._runners(first):
            try:
                ran = await replica.run(batch)
            except EngineLost as error:
                self._retire(replica)
                lost += not isinstance(error, Unserved)
                if lost >= TRIES:
                    return self._give_up(batch, replica, error)
            except Exception as error:  # noqa: BLE001 - whatever an engine raises belongs to the requests of its batch
                refused.append((replica, error))
                if isinstance(error, InputError) or len(refused) >= TRIES:
                    break
            else:
                replica.faults = 0
                for other, _ in refused:
                    self._blame(other)
                self.counts.retried_batches += replica is not first
                self._count(ran)
                return _deliver(ran)
        parts = _by_request(batch)
        if refused and len(parts) > 1:
            self.counts.failed_batches += 1
            for part in parts:  # a request that no engine can run takes none of its neighbours with it
                await self._answer(part, first, lost)
        else:
            self._give_up(batch, *(refused or [(first, EngineLost(NO_ENGINE_LEFT))])[-1])

    def _runners(self, first: Replica) -> Iterator[Replica]:
        """Where a batch may run: on the replica that took it, then on others, those that live when it is asked for one."""
        if first.alive:
            yield first
        others = (replica for replica in self._replicas if replica is not first)
        yield from (replica for replica in sorted(others, key=lambda other: other.faults) if replica.alive)

    def _give_up(self, batch: Sequence[Entry], replica: Replica, error: Exception) -> None:
        self.counts.failed_batches += 1
        _fail_batch(batch, replica, error)

    def _blame(self, replica: Replica) -> None:
        """It failed a batch that ran elsewhere. The last one alive is kept: it is better than none."""
        replica.faults += 1
        if replica.faults >= MAX_FAULTS and self.replicas_alive > 1:
            self._retire(replica)

    def _retire(self, replica: Replica) -> None:
        """Give it no more work. After the last one, nothing that waits can be answered."""
        replica.alive = False
        if not self.replicas_alive:
            for request in self._open:
                _fail(request, EngineLost(NO_ENGINE_LEFT))

    def _finish(self, request: Request) -> None:
        """The caller has its answer, or is gone."""
        if request.waiting and not request.dropped:
            self.counts.dropped_requests += 1
        self._queue.drop(request)
        self._open.discard(request)
        if not self._open:
            self._idle.set()

    def _count(self, ran: Ran) -> None:
        if not ran.entries:
            return
        tokens = sum(entry.length for entry in ran.entries)
        longest = max(entry.length for entry in ran.entries)
        facts = BatchFacts(
            rows=len(ran.entries),
            tokens=tokens,
            slots=self.budget.slots(len(ran.entries), longest, tokens),
            seconds=ran.ended - ran.began,
        )
        counts = self.counts
        counts.batches += 1
        counts.rows += facts.rows
        counts.tokens += facts.tokens
        counts.slots += facts.slots
        counts.seconds += facts.seconds
        self.pace.note(facts.slots, facts.seconds)
        if not self._recent_seconds:
            self._recent_tokens, self._recent_seconds = float(tokens), facts.seconds
        self._recent_tokens += SMOOTHING * (tokens - self._recent_tokens)
        self._recent_seconds += SMOOTHING * (facts.seconds - self._recent_seconds)
        self.on_batch(facts)


def _deliver(ran: Ran) -> None:
    for entry, output in zip(ran.entries, ran.outputs, strict=True):
        request = _request(entry)
        request.began = ran.began if request.began is None else min(request.began, ran.began)
        request.outputs[entry.place] = output
        if len(request.outputs) == request.rows and not request.answer.done():
            request.answer.set_result([request.outputs[index] for index in range(request.rows)])


def _by_request(batch: Sequence[Entry]) -> list[list[Entry]]:
    parts: dict[Ticket, list[Entry]] = {}
    for entry in batch:
        parts.setdefault(entry.ticket, []).append(entry)
    return list(parts.values())


def _fail_batch(batch: Sequence[Entry], replica: Replica, error: Exception) -> None:
    """Every request with a row in the batch gets an error of its own."""
    known = isinstance(error, BeiError)
    message = str(error) if known else f"{replica.executor.target}: {type(error).__name__}: {error}"
    kind = EngineLost if isinstance(error, EngineLost) else EngineError
    for request in {_request(entry) for entry in batch}:
        _fail(request, kind(message))


def _fail(request: Request, error: BeiError) -> None:
    if not request.answer.done():
        request.answer.set_exception(error)


def _note(request: Request, queued: float, now: float, tokens: int) -> None:
    """Size, and time in the queue and in engines, for whoever keeps a record of this request."""
    record = stages.current()
    if record is None:
        return
    record.rows += request.rows
    record.tokens += tokens
    began = now if request.began is None else request.began
    record.stages.append(stages.Stage("queue", queued, began))
    if request.began is not None:
        record.stages.append(stages.Stage("run", began, now))


def _request(entry: Entry) -> Request:
    return cast(Request, entry.ticket)
