"""An event loop whose time is a number that jumps to the next thing due whenever nothing is left to do.

What runs in it sees an ordinary loop, and worker threads where it starts `VirtualThreads`. But only one thread has the
turn, the loop's or a worker's, and a worker that waits for virtual time hands it back. So a program takes the same steps in
the same order, whatever the machine does meanwhile.
"""

import asyncio
import math
import selectors
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class Stalled(RuntimeError):
    """Everything waits, and for nothing that has a time."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time begins at 0 and is in seconds. Close it, and workers that still wait are released with an error."""

    def __init__(self) -> None:
        self._now = 0.0
        self._turn = threading.Semaphore(0)
        self._gates: set[_Gate] = set()
        super().__init__(_Jump(self))

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Called where a loop would sleep. Time always moves on, by the smallest step there is: far from 0 a timer may
        be so near that the sum is rounded back to now, and would never be due."""
        self._now = math.nextafter(self._now + seconds, math.inf)

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """As `call_soon`: the thread that calls has the turn. Nothing after the end."""
        if self.is_closed():
            return asyncio.Handle(callback, args, self, context)
        return self.call_soon(callback, *args, context=context)

    def wait(self, future: "asyncio.Future[Any]") -> None:
        """In a worker thread: until a future of this loop is done, while the loop goes on. Raises Stalled when it is
        closed before that."""
        gate = _Gate()
        self._gates.add(gate)
        future.add_done_callback(lambda done: self._resume(gate))
        self._turn.release()
        gate.opened.acquire()
        if gate.abandoned:
            raise Stalled("the loop was closed")

    def give_turn(self, begin: Callable[[], object]) -> None:
        """``begin`` makes a worker go on; take the turn again when it waits or ends."""
        begin()
        self._turn.acquire()

    def end_turn(self) -> None:
        """Called by a worker at its end."""
        self._turn.release()

    def close(self) -> None:
        super().close()
        for gate in list(self._gates):
            gate.abandoned = True
            self._resume(gate)

    def _resume(self, gate: "_Gate") -> None:
        self._gates.discard(gate)
        self.give_turn(gate.opened.release)


class VirtualThreads(Executor):
    """Threads that take turns with the loop: ``count`` of them at work at most, what comes meanwhile waits in order."""

    def __init__(self, loop: VirtualLoop, count: int, name: str) -> None:
        self._loop = loop
        self._pool = ThreadPoolExecutor(count, name)
        self._free = count
        self._waiting: deque[Callable[[], None]] = deque()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        """In the loop's thread."""
        future: Future[T] = Future()
        self._waiting.append(lambda: self._work(future, partial(fn, *args, **kwargs)))
        self._start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            self._waiting.clear()
        self._pool.shutdown(wait, cancel_futures=cancel_futures)

    def _start(self) -> None:
        """Begin what waits, if a thread is free."""
        if self._waiting and self._free:
            self._free -= 1
            self._loop.give_turn(partial(self._pool.submit, self._waiting.popleft()))

    def _work(self, future: "Future[T]", function: Callable[[], T]) -> None:
        """In one of the threads, which has the turn."""
        try:
            future.set_result(function())
        except Exception as error:  # noqa: BLE001 - it belongs to whoever asks the future
            future.set_exception(error)
        self._free += 1
        self._loop.call_soon_threadsafe(self._start)
        self._loop.end_turn()


@dataclass(eq=False)
class _Gate:
    """Where one worker waits."""

    opened: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    abandoned: bool = False


class _Jump(selectors.SelectSelector):
    """Instead of sleeping it moves the loop's time."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stalled("nothing is left to do, and something still waits")
        self._loop.advance(max(0.0, timeout))
        return []
