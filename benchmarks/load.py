"""A load generator for embedding servers: requests over some connections, latencies counted, answers checked.

    python -m benchmarks.load http://127.0.0.1:8080/v1/embeddings --connections 16 --texts 32 --requests 128

It counts the vectors in the answers' bytes and parses nothing, so that it costs a small part of a core.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from benchmarks.minilm import lognormal_texts


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What came of it: ``seconds`` in all, and each request's latency in seconds, in the order of the answers."""

    texts: int
    seconds: float
    latencies: Sequence[float]

    @property
    def texts_per_second(self) -> float:
        return self.texts / self.seconds

    def quantile(self, share: float) -> float:
        """A latency in milliseconds."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def run(url: str, batches: Sequence[Sequence[str]], connections: int) -> Load:
    """Send each batch of texts as one request, ``connections`` at a time. Raises SystemExit for a wrong answer."""
    return asyncio.run(_run(url, batches, connections))


async def _run(url: str, batches: Sequence[Sequence[str]], connections: int) -> Load:
    parts = urlsplit(url)
    requests = [request(parts.path, parts.netloc, batch) for batch in batches]
    waiting = list(reversed(range(len(batches))))
    latencies: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        while waiting:
            index = waiting.pop()
            began = time.perf_counter()
            writer.write(requests[index])
            status, body = await read_answer(reader)
            latencies.append(time.perf_counter() - began)
            if status != 200 or body.count(b'"embedding":') != len(batches[index]):
                raise SystemExit(f"{url}: status {status}: {body[:300]!r}")
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(min(connections, len(batches)))))
    seconds = time.perf_counter() - began
    return Load(texts=sum(map(len, batches)), seconds=seconds, latencies=latencies)


IDLE_SECONDS = 2
"""After which `run_at` takes no connection again: servers close them after five or so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """One request of `run_at`: when it was written, from the beginning, and how long its answer took, in seconds."""

    at: float
    latency: float


def run_at(url: str, batches: Sequence[Sequence[str]], moments: Sequence[float]) -> list[Sent]:
    """Send each batch at its moment, whatever was answered by then, on as many connections as that takes.

    Raises SystemExit for a wrong answer."""
    return asyncio.run(_run_at(url, batches, moments))


async def _run_at(url: str, batches: Sequence[Sequence[str]], moments: Sequence[float]) -> list[Sent]:
    parts = urlsplit(url)
    requests = [request(parts.path, parts.netloc, batch) for batch in batches]
    idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []
    began = time.perf_counter()

    async def connected() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while idle:
            since, reader, writer = idle.pop()
            if time.perf_counter() - since < IDLE_SECONDS:
                return reader, writer
            writer.close()
        return await asyncio.open_connection(parts.hostname, parts.port)

    async def send(index: int) -> Sent:
        reader, writer = await connected()
        at = time.perf_counter()
        writer.write(requests[index])
        status, body = await read_answer(reader)
        latency = time.perf_counter() - at
        if status != 200:
            raise SystemExit(f"{url}: status {status}: {body[:300]!r}")
        idle.append((time.perf_counter(), reader, writer))
        return Sent(at=at - began, latency=latency)

    tasks = []
    for index, moment in enumerate(moments):
        await asyncio.sleep(max(0.0, began + moment - time.perf_counter()))
        tasks.append(asyncio.create_task(send(index)))
    sent = await asyncio.gather(*tasks)
    for _, _, writer in idle:
        writer.close()
    return list(sent)


def request(path: str, host: str, texts: Sequence[str], **fields: str) -> bytes:
    """``fields`` beside the texts."""
    body = json.dumps({"input": list(texts), "model": "benchmark", **fields}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body. Raises asyncio.IncompleteReadError."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head.split(None, 2)[1])
    if b"content-length:" in head:
        size = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        return status, await reader.readexactly(size)
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return status, body


def main() -> None:
    """One line: requests, texts a second, quantiles of the latency."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--texts", type=int, default=32, help="texts in a request")
    parser.add_argument("--requests", type=int, default=128)
    args = parser.parse_args()
    texts = lognormal_texts(args.texts * args.requests)
    batches = [texts[start : start + args.texts] for start in range(0, len(texts), args.texts)]
    load = run(args.url, batches, args.connections)
    quantiles = ", ".join(
        f"p{round(100 * share)} {load.quantile(share):.1f} ms" for share in (0.5, 0.9, 0.99)
    )
    print(f"{args.requests} requests, {load.texts_per_second:.1f} texts/s, {quantiles}")


if __name__ == "__main__":
    main()
