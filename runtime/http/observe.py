"""Around every request: an id, a record of its stages that its answer's headers tell, and watchers that hear of its end."""

import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bei.runtime import stages

REQUEST_ID, BASETEN_ID = "x-request-id", "x-baseten-customer-request-id"
READABLE_ID = re.compile(r"[!-~]{1,128}")
ELSEWHERE = "other"
"""The route of requests whose path none serves: names from outside never become names of metrics."""

TIMES: dict[str, stages.Name] = {
    "x-tokenization-time": "tokenize",
    "x-queue-time": "queue",
    "x-inference-time": "run",
}
"""TEI's headers for the stages of a request, in whole milliseconds."""


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request and its answer; ``began`` and ``ended`` in seconds of `time.perf_counter`. It holds no text."""

    id: str
    method: str
    route: str
    record: stages.Record
    headers: Mapping[str, str]
    client: str | None = None
    status: int = 500
    began: float = field(default_factory=time.perf_counter)
    ended: float = 0.0
    bytes: int = 0

    @property
    def seconds(self) -> float:
        return self.ended - self.began


Watcher = Callable[[Exchange], None]


class Observe:
    """The outermost layer of the application. ``paths`` are those that the application serves."""

    def __init__(self, app: ASGIApp, watchers: Sequence[Watcher], paths: Collection[str]) -> None:
        self._app, self._watchers, self._paths = app, watchers, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = self._begin(scope)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_headers(exchange)]
            else:
                exchange.bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            exchange.ended = time.perf_counter()
            for watcher in self._watchers:
                watcher(exchange)

    def _begin(self, scope: Scope) -> Exchange:
        headers = Headers(scope=scope)
        path = scope["path"].removeprefix("/sync")
        client = scope.get("client")
        given = headers.get(REQUEST_ID, "")
        return Exchange(
            id=given if READABLE_ID.fullmatch(given) else os.urandom(16).hex(),
            method=scope["method"],
            route=path if path in self._paths else ELSEWHERE,
            record=stages.begin(),
            headers=headers,
            client=client[0] if client else None,
        )


def _headers(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    """The request's ids, ours or the client's, and Baseten's; for work of an engine what it took, as TEI tells it."""
    found = {REQUEST_ID: exchange.id}
    baseten = exchange.headers.get(BASETEN_ID, "")
    if READABLE_ID.fullmatch(baseten):
        found[BASETEN_ID] = baseten
    record = exchange.record
    if record.rows:
        total = _milliseconds(time.perf_counter() - exchange.began)
        found |= {"x-compute-time": total, "x-total-time": total, "x-compute-tokens": str(record.tokens)}
        found |= {header: _milliseconds(record.seconds(name)) for header, name in TIMES.items()}
    return [(name.encode(), value.encode()) for name, value in found.items()]


def _milliseconds(seconds: float) -> str:
    return str(int(1000 * seconds))
