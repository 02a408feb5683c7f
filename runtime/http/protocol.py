"""HTTP/1.1 as uvicorn reads it with httptools, and limits on what a connection may take: time, headers, and a place.

A client that sends its request slowly, or never reads its answer, holds a connection and nothing else, and that not for
long: reading has a time limit which only real progress extends. uvicorn itself limits only the pause between requests.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

LINGER_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionLimits:
    """``head_seconds`` for request line and headers, from the first byte or the connection on; ``body_seconds`` and
    ``answer_seconds`` beyond what ``min_rate`` (bytes a second) allows; ``linger_seconds`` to read an answer that came before the request was
    whole."""

    connections: int = 4096
    head_bytes: int = 32 << 10
    headers: int = 100
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    answer_seconds: float = 60.0
    linger_seconds: float = 2.0
    min_rate: int = 16 << 10


class LimitedProtocol(HttpToolsProtocol):
    """One connection. Its timer runs while the client has to do something: send a request or take an answer."""

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._state = "idle"
        self._began = 0.0
        self._size = 0

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._allow(self.limits.head_seconds)
        if len(self.connections) > self.limits.connections:
            self._refuse(503, "too many connections")

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = "closed"
        _cancel(self._reading, self._writing)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._state == "closed":
            return
        if self._state == "idle":
            self._expect_head()
        self._size += len(data)
        super().data_received(data)
        if self._state == "head" and self._size > self.limits.head_bytes:
            self._refuse(431, "the request's headers are too large")
        elif self._state == "linger" and self._size > LINGER_BYTES:
            self.transport.abort()

    # --- what the parser finds

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if self._state == "closed":
            return
        if size > self.limits.head_bytes or len(self.headers) > self.limits.headers:
            self._refuse(431, "the request's headers are too large or too many")
            return
        super().on_headers_complete()
        self._state, self._size, self._began = "body", 0, self.loop.time()
        self._allow(self.limits.body_seconds)

    def on_body(self, body: bytes) -> None:
        if self._state == "body":
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._state == "body":
            self._state = "whole"
            _cancel(self._reading)
            super().on_message_complete()
        elif self._state == "linger":
            self._state = "idle"
            self._allow(self.timeout_keep_alive)

    # --- the answer

    def on_response_complete(self) -> None:
        newest = not self.pipeline
        super().on_response_complete()
        if self._state == "whole":
            self._state = "idle"
        elif self._state == "body" and newest:
            self._state, self._size = "linger", 0
            self._allow(self.limits.linger_seconds)

    def pause_writing(self) -> None:
        super().pause_writing()
        seconds = self.limits.answer_seconds + self.transport.get_write_buffer_size() / self.limits.min_rate
        self._writing = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._writing)

    # --- limits

    def _expect_head(self) -> None:
        """From the first byte on, once a request: bytes that lead to nothing win no time."""
        if self._state not in ("head", "closed"):
            self._state, self._size = "head", 0
            self._allow(self.limits.head_seconds)

    def _allow(self, seconds: float) -> None:
        _cancel(self._reading)
        self._reading = self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        """The time is over; a body that came at the least rate, or that we did not read, gets more of it."""
        if self.flow.read_paused:
            self._allow(self.limits.body_seconds)
        elif self._state == "body":
            earned = (
                self._began + self.limits.body_seconds + self._size / self.limits.min_rate - self.loop.time()
            )
            if earned > 0:
                self._allow(earned)
            else:
                self._refuse(408, "the request's body came too slowly")
        elif self._state == "head":
            self._refuse(408, "the request's headers came too slowly")
        else:
            self.transport.abort()

    def _refuse(self, status: int, message: str) -> None:
        """Say why, unless an answer has begun, and close."""
        self._state = "closed"
        text = message.encode()
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            head = (
                b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(STATUS_LINE[status] + head % len(text) + text)
        self.transport.close()


def limited(limits: ConnectionLimits) -> type[LimitedProtocol]:
    """The protocol with these limits, for uvicorn's ``http``."""
    return type("LimitedProtocol", (LimitedProtocol,), {"limits": limits})


def _cancel(*timers: asyncio.TimerHandle | None) -> None:
    for timer in timers:
        if timer is not None:
            timer.cancel()
