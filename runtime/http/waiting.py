"""How long a request may take: the client's own limit, and its presence."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from bei.errors import DeadlineExceeded

MAX_DIGITS = 15
"""Of a number of milliseconds; longer ones are no limit at all."""

T = TypeVar("T")


class Deadline:
    """The client's own limit, from ``request-deadline-ms`` (unix time) or ``request-timeout-ms``, or none."""

    def __init__(self, headers: Headers) -> None:
        self._came = time.monotonic()
        self._allowed: float | None = None
        deadline, allowed = (_number(headers, f"request-{name}-ms") for name in ("deadline", "timeout"))
        if deadline is not None:
            self._allowed = deadline / 1000 - time.time()
        elif allowed is not None:
            self._allowed = allowed / 1000

    def seconds_left(self) -> float | None:
        """Raises DeadlineExceeded once it has passed."""
        if self._allowed is None:
            return None
        left = self._allowed - (time.monotonic() - self._came)
        if left <= 0:
            raise DeadlineExceeded("not done within the time that the client allows")
        return left


async def unless_gone(request: Request, deadline: Deadline, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled when the client disconnects or its time is over.

    Raises ClientDisconnect, DeadlineExceeded, and what ``work`` raises.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), timeout=deadline.seconds_left(), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientDisconnect
        raise DeadlineExceeded("not done within the time that the client allows")
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _number(headers: Headers, name: str) -> int | None:
    text = headers.get(name, "")
    return int(text) if text.isdecimal() and len(text) <= MAX_DIGITS else None
