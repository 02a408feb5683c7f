"""Between HTTP and the engines: rows of all requests, batched together, worker threads for each engine.

Pure asyncio around a `FairQueue`; everything but the engines' own calls happens in the event loop.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

from bei.errors import BeiError, DeadlineExceeded, EngineError, Overloaded, ShuttingDown
from bei.runtime.batching import Budget
from bei.runtime.executor import Executor, Output, Row
from bei.runtime.fair_queue import Entry, FairQueue, Ticket

AHEAD = 1
"""Batches handed to an engine's threads beyond those it runs: they wait at its door instead of behind the loop."""

SMOOTHING = 0.1
"""Weight of the newest batch in the measured throughput."""

RETRY_SECONDS = (0.05, 60.0)


@dataclass(slots=True, eq=False, kw_only=True)
class Request(Ticket):
    """A ticket whose outputs are collected; ``answer`` is set once, with all of them or an error."""

    rows: int
    answer: asyncio.Future[list[Output]]
    outputs: dict[int, Output] = field(default_factory=dict)


@dataclass(slots=True)
class Counts:
    """Since the start; ``seconds`` is engine time, ``slots`` the tokens run including padding."""

    batches: int = 0
    rows: int = 0
    tokens: int = 0
    slots: int = 0
    seconds: float = 0.0
    failed_batches: int = 0
    dropped_requests: int = 0
    refused_requests: int = 0


class Scheduler:
    """Runs rows on ``executors`` (equal engines). Belongs to one event loop, from `start` to `close`."""

    def __init__(self, executors: Sequence[Executor], budget: Budget, *, max_queue_tokens: int) -> None:
        self.counts = Counts()
        self._executors = executors
        self._budget = budget
        self._max_queue_tokens = max_queue_tokens
        self._queue = FairQueue()
        self._open: set[Request] = set()
        self._reserved = 0
        self._recent_tokens = self._recent_seconds = 0.0
        self._closing = False
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._threads: list[ThreadPoolExecutor] = []
        self._workers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the workers in the running event loop."""
        for number, executor in enumerate(self._executors):
            threads = ThreadPoolExecutor(executor.concurrency, f"bei-engine-{number}")
            self._threads.append(threads)
            for _ in range(executor.concurrency + AHEAD):
                self._workers.append(asyncio.create_task(self._serve(executor, threads)))

    @property
    def queued_tokens(self) -> int:
        """Tokens waiting for an engine, and those promised to requests being tokenised."""
        return self._queue.tokens + self._reserved

    @property
    def tokens_per_second(self) -> float:
        """Measured over recent batches, all engines together; 0 before the first."""
        if not self._recent_seconds:
            return 0.0
        lanes = sum(executor.concurrency for executor in self._executors)
        return lanes * self._recent_tokens / self._recent_seconds

    async def run(self, rows: Sequence[Row], *, timeout: float | None = None) -> list[Output]:
        """Each row's output, in order; if the caller is cancelled, what still waits is dropped.

        Raises Overloaded or ShuttingDown at once, DeadlineExceeded after ``timeout`` seconds, EngineError when a batch
        with one of these rows fails.
        """
        if not rows:
            return []
        self._admit(sum(len(row.ids) for row in rows))
        loop = asyncio.get_running_loop()
        request = Request(rows=len(rows), answer=loop.create_future())
        self._open.add(request)
        self._idle.clear()
        alarm = None if timeout is None else loop.call_later(timeout, self._expire, request, timeout)
        try:
            self._queue.push(request, rows)
            self._work.set()
            return await request.answer
        finally:
            if alarm is not None:
                alarm.cancel()
            self._finish(request)

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
        for threads in self._threads:
            threads.shutdown(wait=False, cancel_futures=True)

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
        queued = self.queued_tokens
        if queued and queued + tokens > self._max_queue_tokens:
            self.counts.refused_requests += 1
            raise Overloaded(
                f"the model is overloaded ({queued} tokens are queued, at most {self._max_queue_tokens})",
                self.retry_after(),
            )

    async def _serve(self, executor: Executor, threads: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._work.wait()
            batch = self._queue.take(self._budget)
            if not batch:
                self._work.clear()
                continue
            try:
                outputs, seconds = await loop.run_in_executor(threads, _run, executor, batch)
            except Exception as error:  # noqa: BLE001 - whatever an engine raises belongs to the requests of its batch
                self._fail_batch(executor, batch, error)
            else:
                self._count(batch, seconds)
                _deliver(batch, outputs)

    def _fail_batch(self, executor: Executor, batch: Sequence[Entry], error: Exception) -> None:
        self.counts.failed_batches += 1
        known = isinstance(error, BeiError)
        message = str(error) if known else f"{executor.target}: {type(error).__name__}: {error}"
        for request in {_request(entry) for entry in batch}:
            _fail(request, EngineError(message))

    def _expire(self, request: Request, timeout: float) -> None:
        _fail(request, DeadlineExceeded(f"not done within the {timeout:.3f} s that the client allows"))

    def _finish(self, request: Request) -> None:
        """The caller has its answer, or is gone."""
        if request.waiting and not request.dropped:
            self.counts.dropped_requests += 1
        self._queue.drop(request)
        self._open.discard(request)
        if not self._open:
            self._idle.set()

    def _count(self, batch: Sequence[Entry], seconds: float) -> None:
        tokens = sum(entry.length for entry in batch)
        counts = self.counts
        counts.batches += 1
        counts.rows += len(batch)
        counts.tokens += tokens
        counts.slots += len(batch) * max(entry.length for entry in batch) if self._budget.padded else tokens
        counts.seconds += seconds
        if not self._recent_seconds:
            self._recent_tokens, self._recent_seconds = float(tokens), seconds
        self._recent_tokens += SMOOTHING * (tokens - self._recent_tokens)
        self._recent_seconds += SMOOTHING * (seconds - self._recent_seconds)


def _run(executor: Executor, batch: Sequence[Entry]) -> tuple[Sequence[Output] | Output, float]:
    """In one of the engine's threads: outputs, one an entry, and the seconds they took."""
    began = time.perf_counter()
    outputs = executor.run([entry.row for entry in batch])
    if len(outputs) != len(batch):
        raise EngineError(f"{executor.target}: gave {len(outputs)} outputs for {len(batch)} rows")
    return outputs, time.perf_counter() - began


def _deliver(batch: Sequence[Entry], outputs: Sequence[Output] | Output) -> None:
    for entry, output in zip(batch, outputs, strict=True):
        request = _request(entry)
        request.outputs[entry.place] = output
        if len(request.outputs) == request.rows and not request.answer.done():
            request.answer.set_result([request.outputs[index] for index in range(request.rows)])


def _fail(request: Request, error: BeiError) -> None:
    if not request.answer.done():
        request.answer.set_exception(error)


def _request(entry: Entry) -> Request:
    return cast(Request, entry.ticket)
