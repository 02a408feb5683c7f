"""How long a request may take: the client's own limit, and its presence."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from bei.errors import DeadlineExceeded

T = TypeVar("T")


def seconds_left(headers: Headers) -> float | None:
    """The client's own limit, from ``request-deadline-ms`` (unix time) or ``request-timeout-ms``."""
    deadline, allowed = (headers.get(f"request-{name}-ms", "") for name in ("deadline", "timeout"))
    if deadline.isdecimal():
        left = int(deadline) / 1000 - time.time()
        if left <= 0:
            raise DeadlineExceeded("the request came after its own deadline")
        return left
    return int(allowed) / 1000 if allowed.isdecimal() else None


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled when the client disconnects. Raises ClientDisconnect."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
