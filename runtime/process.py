"""A server's life as a process: ready once, drained at the first signal, gone at the second."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator
from types import FrameType

import uvicorn

STOPPING = (signal.SIGTERM, signal.SIGINT)

SLACK_SECONDS = 5
"""After the drain: to write the last answers and to release the engines."""


class Server(uvicorn.Server):
    """uvicorn, but it says when it is ready, and a signal first drains: accepted work is answered, new work and health
    checks get 503, then the process ends with 0, whatever still hangs, at most SLACK_SECONDS after ``drain_seconds``.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        ready: Callable[[], None],
        drain: Callable[[float], Awaitable[None]],
        drain_seconds: float,
    ) -> None:
        super().__init__(config)
        self._ready, self._drain, self._drain_seconds = ready, drain, drain_seconds
        self._signalled = False
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def on_tick(self, counter: int) -> bool:
        if self._signalled and self._draining is None:
            self._draining = asyncio.create_task(self._stop())
        return await super().on_tick(counter)

    async def _stop(self) -> None:
        await self._drain(self._drain_seconds)
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._signalled:
            os._exit(128 + sig)
        self._signalled = True
        limit = threading.Timer(self._drain_seconds + SLACK_SECONDS, os._exit, (0,))
        limit.daemon = True
        limit.start()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As uvicorn, which only would raise the signals again at the end. They stay captured while engines close."""
        for number in STOPPING:
            signal.signal(number, self.handle_exit)
        yield


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Before there is anything to drain, a signal ends the process at once, with 0. (To the first process of a
    container a signal without a handler means nothing.)"""
    before = {number: signal.signal(number, _leave) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)
