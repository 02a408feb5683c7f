"""One engine of a scheduler, its threads, and whether it can still be trusted with work."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor as Threads
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from bei.errors import EngineError, EngineLost
from bei.runtime.batching import Budget
from bei.runtime.executor import Executor, Output
from bei.runtime.fair_queue import Entry
from bei.runtime.pace import Pace

Clock = Callable[[], float]
"""Gives seconds."""

StartThreads = Callable[[int, str], Threads]
"""So many threads of that name."""

MAX_FAULTS = 3
"""Batches in a row that fail on a replica and succeed on another before it is taken out."""


class Unserved(EngineLost):
    """The engine was lost with another batch before it took this one, which therefore had no part in that."""


class Ran(NamedTuple):
    """What came of a batch: its entries that were still wanted, their outputs, and when the engine had them."""

    entries: Sequence[Entry]
    outputs: Sequence[Output] | Output
    began: float
    ended: float


@dataclass(slots=True, eq=False)
class _Call:
    """A batch given to the threads. ``began`` None: it waits for one. ``alarm`` rings when it may be hanging."""

    batch: Sequence[Entry]
    answer: asyncio.Future[Ran]
    began: float | None = None
    alarm: asyncio.TimerHandle | None = None


class Replica:
    """``alive`` until it is lost, hangs, or is found at fault too often; ``faults`` counts since the last success.

    Belongs to one event loop. A call that hangs cannot be ended: its thread stays, and nobody waits for it any more.
    """

    def __init__(
        self,
        executor: Executor,
        number: int,
        budget: Budget,
        pace: Pace,
        *,
        clock: Clock = time.perf_counter,
        threads: StartThreads = ThreadPoolExecutor,
    ) -> None:
        self.executor = executor
        self.number = number
        self.alive = True
        self.faults = 0
        self._lost: EngineLost | None = None
        self._budget, self._pace = budget, pace
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._threads = threads(executor.concurrency, f"bei-engine-{number}")
        self._calls: set[_Call] = set()

    def run(self, batch: Sequence[Entry]) -> "asyncio.Future[Ran]":
        """Run, in one of the threads, what nobody has given up by then. The answer raises what the engine raises, EngineLost
        when the call hangs, and Unserved when the engine was lost before it."""
        call = _Call(batch, self._loop.create_future())
        self._calls.add(call)
        self._watch(call, self._pace.hang_seconds)
        self._threads.submit(self._work, call)
        return call.answer

    def close(self) -> None:
        """Take no more work; calls that run are not waited for."""
        for call in self._calls:
            _cancel(call)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _work(self, call: _Call) -> None:
        """In one of the threads."""
        result: Ran | BaseException
        try:
            result = self._execute(call)
        except EngineLost as error:
            self._lost = self._lost or error
            result = error
        except BaseException as error:  # noqa: BLE001 - whatever an engine raises belongs to whoever waits
            result = error
        self._loop.call_soon_threadsafe(self._settle, call, result)

    def _execute(self, call: _Call) -> Ran:
        if self._lost is not None:
            raise Unserved(str(self._lost))
        began = call.began = self._clock()
        wanted = [entry for entry in call.batch if not entry.ticket.dropped]
        outputs = self.executor.run([entry.row for entry in wanted]) if wanted else []
        if len(outputs) != len(wanted):
            raise EngineError(f"{self.executor.target}: gave {len(outputs)} outputs for {len(wanted)} rows")
        return Ran(wanted, outputs, began, self._clock())

    def _settle(self, call: _Call, result: Ran | BaseException) -> None:
        self._calls.discard(call)
        _cancel(call)
        if call.answer.done():
            return
        if isinstance(result, Ran):
            call.answer.set_result(result)
        else:
            call.answer.set_exception(result)

    def _watch(self, call: _Call, seconds: float) -> None:
        call.alarm = self._loop.call_later(seconds, self._check, call)

    def _check(self, call: _Call) -> None:
        """Give a call that has not had its time yet the rest of it."""
        if call.began is None:
            self._watch(call, self._pace.hang_seconds)
            return
        ran = self._clock() - call.began
        limit = self._pace.limit(self._slots(call.batch))
        if ran < limit:
            self._watch(call, limit - ran)
        else:
            self._hang(ran, limit)

    def _hang(self, ran: float, limit: float) -> None:
        """Every batch here needs another engine: those behind the one that hangs would wait for ever."""
        self.alive = False
        message = (
            f"{self.executor.target}: a batch has been running for {ran:.0f} s (limit {limit:.0f} s); its engine hangs. "
            "Restart the server."
        )
        self._lost = EngineLost(message)
        for call in list(self._calls):
            self._settle(call, Unserved(message) if call.began is None else EngineLost(message))

    def _slots(self, batch: Sequence[Entry]) -> int:
        lengths = [entry.length for entry in batch]
        return self._budget.slots(len(lengths), max(lengths), sum(lengths))


def _cancel(call: _Call) -> None:
    if call.alarm is not None:
        call.alarm.cancel()
