"""The whole server process under abuse: thousands of mixed requests while clients leave, bodies are broken, an engine raises and
another one dies; death and restart under load; uploads without end."""

import asyncio
import base64
import json
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.runtime.fake_server import vector
from tests.runtime.processes import server
from tests.runtime.raw_http import Answer, Connection
from tests.runtime.tiny import CLS, LETTERS, SEP, VOCAB, write_bundle

FAKE = "tests.runtime.fake_server"
CONNECTIONS, REQUESTS = 64, 10_000
DOCUMENTED = {400, 408, 413, 415, 422, 429, 500, 503}
"""What a request that came whole may be refused or failed with."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """An embedding model and a reranker."""
    folder = tmp_path_factory.mktemp("reliability")
    embed = write_bundle(folder / "embed", name="embed", max_batch=64)
    rerank = write_bundle(folder / "rerank", name="rerank", task="rerank", labels=["score"], max_batch=64)
    return str(embed), str(rerank)


def ids(text: str) -> list[int]:
    return [CLS, *(VOCAB[word] for word in text.split()), SEP]


def close(got: object, wanted: Sequence[object]) -> bool:
    return np.allclose(np.asarray(got, np.float32), np.asarray(wanted, np.float32), atol=1e-5)


class Client:
    """One of many; everything it does is drawn from its own random numbers. ``seen`` counts what happened."""

    def __init__(self, port: int, number: int, seen: Counter[str]) -> None:
        self.random = random.Random(number)
        self.connection = Connection(port)
        self.name, self.count = f"client-{number}", 0
        self.seen = seen

    async def run(self, requests: int) -> None:
        deeds: list[Callable[[], Awaitable[None]]] = [
            self.embed_base64, self.embed_floats, self.embed_ids, self.embed_tei, self.rerank, self.broken, self.raising,
            self.leave, self.look,
        ]  # fmt: skip
        for _ in range(requests):
            (deed,) = self.random.choices(deeds, weights=(8, 3, 2, 3, 3, 3, 0.5, 2, 1))
            await deed()
        self.connection.close()

    async def ask(self, path: str, body: object) -> Answer | None:
        """The answer when it is 200; else it must be a documented error, and is counted."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.count += 1
        given = f"{self.name}-{self.count}"
        answer = await self.connection.ask("POST", path, content, f"x-request-id: {given}\r\n")
        assert answer.headers["x-request-id"] == given  # of this request, and the only one
        self.seen[str(answer.status)] += 1
        if answer.status == 200:
            return answer
        assert answer.status in DOCUMENTED, answer
        assert "error" in json.loads(answer.body)
        assert b"Traceback" not in answer.body
        return None

    def text(self, words: int = 12) -> str:
        return " ".join(self.random.choices(LETTERS, k=self.random.randint(1, words)))

    async def embed_base64(self) -> None:
        text = self.text()
        answer = await self.ask("/v1/embeddings", {"input": text, "encoding_format": "base64"})
        if answer is not None:
            got = np.frombuffer(base64.b64decode(json.loads(answer.body)["data"][0]["embedding"]), "<f4")
            assert close(got, vector(ids(text)).tolist())

    async def embed_floats(self) -> None:
        texts = [self.text() for _ in range(self.random.choice((2, 5, 40)))]
        answer = await self.ask("/v1/embeddings", {"input": texts})
        if answer is not None:
            got = [item["embedding"] for item in json.loads(answer.body)["data"]]
            assert close(got, [vector(ids(text)) for text in texts])

    async def embed_ids(self) -> None:
        rows = [[self.random.randint(5, 30) for _ in range(self.random.randint(1, 14))] for _ in range(3)]
        answer = await self.ask("/v1/embeddings", {"input": rows})
        if answer is not None:
            assert close(
                [item["embedding"] for item in json.loads(answer.body)["data"]], [vector(row) for row in rows]
            )

    async def embed_tei(self) -> None:
        texts = [self.text() for _ in range(3)]
        answer = await self.ask("/embed", {"inputs": texts})
        if answer is not None:
            assert close(json.loads(answer.body), [vector(ids(text)) for text in texts])

    async def rerank(self) -> None:
        query, texts = self.text(3), [self.text(5) for _ in range(4)]
        answer = await self.ask("/rerank", {"query": query, "texts": texts, "raw_scores": True})
        if answer is not None:
            got = {item["index"]: item["score"] for item in json.loads(answer.body)}
            wanted = [vector([*ids(query), *ids(text)[1:]], 1)[0] for text in texts]
            assert close([got[index] for index in range(4)], wanted)

    async def broken(self) -> None:
        body: object = self.random.choice(
            (
                b"",
                b"{",
                b"\xff\xfe",
                b"[" * 1000,
                {"input": []},
                {"input": 5},
                {"input": [1, "a"]},
                {"inputs": "a"},
            )
        )
        assert await self.ask("/v1/embeddings", body) is None

    async def raising(self) -> None:
        assert await self.ask("/v1/embeddings", {"input": "query"}) is None
        self.seen["raised"] += 1

    async def leave(self) -> None:
        """Send a request, or part of one, and go."""
        body = json.dumps({"input": [self.text() for _ in range(self.random.choice((1, 50)))]}).encode()
        await self.connection.send("POST", "/v1/embeddings", body, part=self.random.choice((0.3, 0.9, 1.0)))
        await asyncio.sleep(self.random.choice((0, 0.001, 0.01)))
        self.connection.close()
        self.seen["left"] += 1

    async def look(self) -> None:
        answer = await self.connection.ask(
            "GET", self.random.choice(("/health", "/v1/models", "/stats", "/nowhere"))
        )
        assert answer.status in (200, 404)


async def crowd(port: int, requests: int, seen: Counter[str], offset: int) -> None:
    clients = [Client(port, offset + number, seen) for number in range(CONNECTIONS)]
    shares = [requests // CONNECTIONS + (number < requests % CONNECTIONS) for number in range(CONNECTIONS)]
    await asyncio.gather(*(client.run(share) for client, share in zip(clients, shares, strict=True)))


def settle(url: str, tasks: int) -> None:
    """Wait until nothing is open and no more tasks are left than there were."""
    until = time.monotonic() + 60
    while True:
        left = httpx.get(f"{url}/tasks").json()
        stats = httpx.get(f"{url}/stats").json()["models"]
        if left["tasks"] <= tasks and all(
            model["open_requests"] == model["queue_tokens"] == 0 for model in stats
        ):
            return
        assert time.monotonic() < until, (left, stats)
        time.sleep(0.05)


def resident(pid: int) -> int:
    """Bytes of memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


@pytest.mark.timeout(600)
def test_thousands_of_mixed_requests(folders: tuple[str, str]) -> None:
    seen: Counter[str] = Counter()
    with server("--die-after", "300", *folders, "--replicas", "2", module=FAKE) as (process, url):
        tasks = httpx.get(f"{url}/tasks").json()["tasks"]
        asyncio.run(crowd(port_of(url), REQUESTS // 2, seen, 0))
        settle(url, tasks)
        middle = resident(process.pid)
        asyncio.run(crowd(port_of(url), REQUESTS - REQUESTS // 2, seen, CONNECTIONS))
        settle(url, tasks)
        end = resident(process.pid)
        stats = httpx.get(f"{url}/stats").json()
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0
    assert end < 1.05 * middle, f"{middle >> 20} MiB in the middle, {end >> 20} MiB at the end"
    assert seen["200"] > REQUESTS // 2
    assert seen["left"] > 100
    assert 0 < seen["500"] == seen["raised"]  # those that asked for it, and none of their neighbours
    assert seen["503"] == 0  # one engine dies, the other is there for what it had
    assert seen["400"] > 100
    embed, rerank = stats["models"]
    assert (embed["replicas_alive"], rerank["replicas_alive"]) == (
        1,
        2,
    )  # the first of all was the one to die
    assert embed["rows"] > rerank["rows"] > 1000


def test_killed_under_load_it_starts_again(folders: tuple[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    seen: Counter[str] = Counter()

    async def load(kill: Callable[[], None]) -> None:
        async def client(number: int) -> None:
            one = Client(port, number, seen)
            try:
                while True:
                    await one.embed_base64()
            except (OSError, asyncio.IncompleteReadError):
                seen["gone"] += 1
            finally:
                one.connection.close()

        clients = [asyncio.create_task(client(number)) for number in range(16)]
        while seen["200"] < 100:
            await asyncio.sleep(0.01)
        kill()
        await asyncio.wait_for(asyncio.gather(*clients), 60)

    for _ in range(2):
        seen.clear()
        with server(*folders, "--port", str(port), module=FAKE) as (process, _):
            asyncio.run(load(process.kill))
            assert process.wait(timeout=30) == -signal.SIGKILL
        assert seen["gone"] == 16
        assert seen["200"] >= 100


def test_an_upload_without_end_takes_no_memory(folders: tuple[str, str]) -> None:
    with server(folders[0], "--max-body-bytes", str(1 << 20), module=FAKE) as (process, url):
        assert httpx.post(f"{url}/v1/embeddings", json={"input": "a"}).status_code == 200
        before = resident(process.pid)
        for header in (f"content-length: {100 << 20}", "transfer-encoding: chunked"):
            with socket.create_connection(("127.0.0.1", port_of(url)), timeout=30) as client:
                client.sendall(f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\n{header}\r\n\r\n".encode())
                try:
                    for _ in range(100 << 4):
                        client.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                except OSError:
                    continue
                raise AssertionError("100 MiB were taken")
        assert resident(process.pid) < before + (16 << 20)
        assert httpx.post(f"{url}/v1/embeddings", json={"input": "a"}).status_code == 200
