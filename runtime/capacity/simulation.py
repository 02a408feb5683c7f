"""One replica of the service in virtual time: the scheduler itself, over an engine that takes as long as was measured.

Around it what a request meets on its way: the event loop, which does one thing at a time, and the tokenizer's threads.
"""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bei.errors import Overloaded
from bei.runtime.batching import Budget
from bei.runtime.capacity.cores import Cores
from bei.runtime.capacity.curve import REST, EngineCurve, HostCosts, Times
from bei.runtime.capacity.traffic import Arrival
from bei.runtime.capacity.virtual_time import VirtualLoop, VirtualThreads
from bei.runtime.executor import Output, Row
from bei.runtime.scheduler import Scheduler
from bei.runtime.service import TOKENIZER_THREADS

MAX_QUEUE_TOKENS = 1 << 20
"""As bei-serve has it unless told otherwise."""

WARM_UP = 0.1
"""Share of the requests, the first ones, that no figure counts: they find an empty replica."""

Part = Literal["engine", "event loop", "tokenizer", "host"]
"""The host is all cores together, where the engine does not compute on them."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaModel:
    """What one replica is made of."""

    curve: EngineCurve
    host: HostCosts
    budget: Budget

    @property
    def on_cpu(self) -> bool:
        """Whether the engine and the server want the same cores."""
        return self.curve.kind == "cpu"

    @property
    def slower(self) -> float:
        """How many times as long the server's own work takes as by itself."""
        return self.host.beside_engine if self.on_cpu else 1.0


@dataclass(kw_only=True, slots=True)
class Seen:
    """What happened. ``latencies`` in seconds, in order of arrival, NaN for a request that was refused; ``seconds``
    until the last answer; ``busy`` the share of that time that each part was at work."""

    latencies: Floats
    seconds: float
    texts: int
    batches: int = 0
    batch_tokens: int = 0
    busy: dict[Part, float] = field(default_factory=dict)
    gave_up: bool = False

    @property
    def counted(self) -> Floats:
        """Latencies after the warm-up."""
        return self.latencies[int(WARM_UP * len(self.latencies)) :]

    @property
    def refused(self) -> int:
        return int(np.isnan(self.counted).sum())

    def quantile(self, share: float) -> float:
        """Of the latencies, in seconds; a refused request counts as one that never ends."""
        ordered = np.sort(np.where(np.isnan(self.counted), np.inf, self.counted))
        return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))])

    @property
    def texts_per_second(self) -> float:
        return self.texts / self.seconds


class ModelledExecutor:
    """An engine that only takes time: as much as its curve says."""

    def __init__(self, loop: VirtualLoop, cores: Cores, curve: EngineCurve) -> None:
        self.target = curve.target
        self.concurrency = curve.concurrency
        self._loop, self._cores = loop, cores
        self._times = Times(curve)
        self._seconds = lru_cache(1 << 16)(self._seconds_uncached)

    def run(self, rows: list[Row]) -> Output:
        lengths = tuple(sorted(len(row.ids) for row in rows))
        seconds, rested = self._seconds(lengths)
        slower = 1 + (rested - 1) * min(1.0, self._cores.engine_rest / REST)
        self._loop.wait(self._cores.call([slower * one for one in seconds]))
        return np.zeros((len(rows), 1), np.float32)

    def _seconds_uncached(self, lengths: tuple[int, ...]) -> tuple[tuple[float, ...], float]:
        return self._times.seconds(lengths), self._times.rested(lengths)

    def describe(self) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


class Replica:
    """The scheduler with its engine, and the host's part, in a loop of virtual time."""

    def __init__(self, loop: VirtualLoop, model: ReplicaModel) -> None:
        self._loop = loop
        self.model = model
        self.cores = Cores(
            loop, cores=model.host.cores, engine_threads=model.curve.threads if model.on_cpu else 0
        )
        self.scheduler = Scheduler(
            [ModelledExecutor(loop, self.cores, model.curve)],
            model.budget,
            max_queue_tokens=MAX_QUEUE_TOKENS,
            clock=loop.time,
            threads=partial(VirtualThreads, loop),
        )
        self._event_loop = asyncio.Lock()
        self._tokenizers = asyncio.Semaphore(TOKENIZER_THREADS)
        self.loop_seconds = self.tokenizer_seconds = 0.0

    async def answer(self, lengths: Sequence[int]) -> float:
        """One request's latency. Raises Overloaded."""
        began = self._loop.time()
        await asyncio.sleep(self.model.host.idle)
        cost = self.model.slower * (self.model.host.request + self.model.host.text * len(lengths))
        await self._in_event_loop(cost / 2)  # reading it; the rest is writing the answer
        with self.scheduler.reserve(sum(lengths)):
            await self._tokenize(lengths)
        await self.scheduler.run([_row(length) for length in lengths])
        await self._in_event_loop(cost / 2)
        return self._loop.time() - began

    async def _in_event_loop(self, seconds: float) -> None:
        async with self._event_loop:
            await self.cores.thread(seconds)
        self.loop_seconds += seconds

    async def _tokenize(self, lengths: Sequence[int]) -> None:
        host = self.model.host
        texts = host.tokenize_text * len(lengths) + host.tokenize_token * sum(lengths)
        seconds = self.model.slower * (host.tokenize_request + texts)
        async with self._tokenizers:
            await self.cores.thread(seconds)
        self.tokenizer_seconds += seconds


class Log:
    """Latencies as they come. With a ``limit`` in seconds it is ``hopeless`` once more than 1 % of the counted requests
    have waited longer: their 99th percentile is then known to be above it."""

    def __init__(self, requests: int, limit: float = math.inf) -> None:
        self.latencies = np.full(requests, np.nan)
        self.hopeless = asyncio.Event()
        self._limit = limit
        self._first = int(WARM_UP * requests)
        self._late, self._may_be_late = 0, int(0.01 * (requests - self._first))

    async def answer(self, replica: Replica, index: int, lengths: Sequence[int]) -> None:
        """Have the replica answer a request, and note how long it took."""
        alarm = None
        if index >= self._first and self._limit < math.inf:
            alarm = asyncio.get_running_loop().call_later(self._limit, self._one_is_late)
        with contextlib.suppress(Overloaded):
            self.latencies[index] = await replica.answer(lengths)
            if alarm is not None:
                alarm.cancel()

    def _one_is_late(self) -> None:
        self._late += 1
        if self._late > self._may_be_late:
            self.hopeless.set()


def simulate(model: ReplicaModel, arrivals: Sequence[Arrival], *, limit: float = math.inf) -> Seen:
    """Send the requests to one replica at their moments; give up when the log is hopeless."""

    async def send(replica: Replica, log: Log) -> None:
        tasks = []
        for index, arrival in enumerate(arrivals):
            await asyncio.sleep(arrival.at - asyncio.get_running_loop().time())
            if log.hopeless.is_set():
                break
            tasks.append(asyncio.create_task(log.answer(replica, index, arrival.lengths)))
        answered, lost = asyncio.gather(*tasks), asyncio.ensure_future(log.hopeless.wait())
        answered.add_done_callback(lambda done: lost.cancel())
        with contextlib.suppress(asyncio.CancelledError):
            await lost
            answered.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await answered

    return _run(model, Log(len(arrivals), limit), send, sum(len(arrival.lengths) for arrival in arrivals))


def simulate_clients(model: ReplicaModel, requests: Sequence[Sequence[int]], clients: int) -> Seen:
    """``clients`` that each send a request, wait for the answer, and send the next, until all are sent."""
    waiting = iter(range(len(requests)))

    async def client(replica: Replica, log: Log) -> None:
        for index in waiting:
            await log.answer(replica, index, requests[index])

    async def send(replica: Replica, log: Log) -> None:
        await asyncio.gather(*(client(replica, log) for _ in range(clients)))

    return _run(model, Log(len(requests)), send, sum(map(len, requests)))


def _run(model: ReplicaModel, log: Log, send: Callable[[Replica, Log], Awaitable[None]], texts: int) -> Seen:
    """``send`` to a replica of its own, in a time of its own."""
    loop = VirtualLoop()

    async def serve() -> Seen:
        replica = Replica(loop, model)
        replica.scheduler.start()
        await send(replica, log)
        seen = _seen(replica, log, texts)
        await replica.scheduler.close()
        return seen

    with contextlib.closing(loop):
        return loop.run_until_complete(serve())


def _seen(replica: Replica, log: Log, texts: int) -> Seen:
    now, counts = asyncio.get_running_loop().time(), replica.scheduler.counts
    busy: dict[Part, float] = {
        "engine": replica.cores.engine_busy / now,
        "event loop": replica.loop_seconds / now,
        "tokenizer": replica.tokenizer_seconds / now / TOKENIZER_THREADS,
    }
    if not replica.model.on_cpu:
        host_seconds = replica.loop_seconds + replica.tokenizer_seconds
        busy["host"] = host_seconds / now / replica.model.host.cores
    return Seen(
        latencies=log.latencies,
        seconds=now,
        texts=texts,
        batches=counts.batches,
        batch_tokens=counts.slots,
        gave_up=log.hopeless.is_set(),
        busy=busy,
    )


@lru_cache(1 << 16)
def _row(length: int) -> Row:
    """Its numbers do not matter."""
    zeros = np.zeros(length, np.int32)
    return Row(ids=zeros, types=zeros)
