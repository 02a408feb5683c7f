"""A small HTTP/1.1 client over asyncio: one connection, requests one after the other, cheap enough for thousands."""

import asyncio
from typing import NamedTuple


class Answer(NamedTuple):
    """``headers`` in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """Opens itself again after it was closed by either side."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"", headers: str = "") -> Answer:
        """Send a request and read its answer. Raises OSError and asyncio.IncompleteReadError."""
        await self.send(method, path, body, headers)
        return await self.answer()

    async def send(
        self, method: str, path: str, body: bytes = b"", headers: str = "", part: float = 1.0
    ) -> None:
        """Send a request, or its first ``part``."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
        whole = head.encode() + body
        self._streams[1].write(whole[: max(1, int(part * len(whole)))])
        await self._streams[1].drain()

    async def answer(self) -> Answer:
        """Read one answer."""
        assert self._streams is not None
        reader = self._streams[0]
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection") == "close":
            self.close()
        return Answer(int(first.split()[1]), headers, body)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
