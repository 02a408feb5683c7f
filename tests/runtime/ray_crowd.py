"""Clients of a Ray Serve application that ask without pause, and judge every answer."""

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from tests.runtime.raw_http import Answer, Connection
from tests.runtime.tiny import CLS, LETTERS, SEP, VOCAB, Array

CLIENTS = 4
PAUSE_SECONDS = 0.02
"""Between two requests of a client: what is tested needs the cores too."""


def ids(text: str) -> list[int]:
    return [CLS, *(VOCAB[word] for word in text.split()), SEP]


@contextmanager
def crowd(port: int, bundles: Mapping[str, Callable[[list[int]], Array]]) -> Iterator[Counter[str]]:
    """What came of their requests so far: the name of the bundle that the answer is right for, "wrong", the status of a
    refusal, or "broken" for a connection without an answer. Leaving it waits for those under way."""
    seen: Counter[str] = Counter()
    stop = threading.Event()

    async def client(number: int) -> None:
        connection, chance = Connection(port), random.Random(number)
        while not stop.is_set():
            text = " ".join(chance.choices(LETTERS, k=chance.randint(1, 12)))
            body = json.dumps({"input": text}).encode()
            try:
                answer = await connection.ask("POST", "/v1/embeddings", body)
            except (OSError, asyncio.IncompleteReadError):
                connection.close()
                seen["broken"] += 1
                continue
            seen[judged(text, answer.status, answer.body)] += 1
            await asyncio.sleep(PAUSE_SECONDS)
        connection.close()

    def judged(text: str, status: int, body: bytes) -> str:
        if status != 200:
            return str(status)
        got = np.asarray(json.loads(body)["data"][0]["embedding"], np.float32)
        right = (name for name, of in bundles.items() if np.allclose(got, of(ids(text)), atol=1e-5))
        return next(right, "wrong")

    async def everybody() -> None:
        await asyncio.gather(*(client(number) for number in range(CLIENTS)))

    thread = threading.Thread(target=lambda: asyncio.run(everybody()))
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()


class Burst(threading.Thread):
    """``count`` requests for a text at the same time; with ``again`` each client goes on asking until `end`."""

    def __init__(self, port: int, prefix: str, text: str, count: int, *, again: bool = False) -> None:
        super().__init__()
        self._port, self._path, self._count = port, f"{prefix}/v1/embeddings", count
        self._body = json.dumps({"input": text}).encode()
        self._again = again
        self._answers: list[Answer] = []
        self.start()

    def run(self) -> None:
        async def everybody() -> None:
            await asyncio.gather(*(self._client() for _ in range(self._count)))

        asyncio.run(everybody())

    async def _client(self) -> None:
        connection = Connection(self._port)
        while True:
            self._answers.append(await connection.ask("POST", self._path, self._body))
            if not self._again:
                break
        connection.close()

    def end(self) -> list[Answer]:
        """Every answer, when the last has come."""
        self._again = False
        self.join(120)
        assert not self.is_alive()
        return self._answers
