"""The real server over an engine whose calls are timed, and one client: what is left of a request is the server's own."""

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import uvicorn

from bei.errors import EngineError
from bei.manifest import Task
from bei.runtime.cold_start import ColdStart
from bei.runtime.executor import Executor, Output, Row
from bei.runtime.listen import bind
from bei.runtime.model import Model
from bei.runtime.serve import Options, application, server_config
from bei.runtime.service import Service

TEXT = (
    "what a server adds to a text of some sixty words: " + "the engine empties the caches of its cores, " * 6
)
"""Of usual length: the longer the engine runs, the more of the server's own code has left the caches."""

START_SECONDS = 60
HEADERS = {"content-type": "application/json"}
TOKENIZER = "bei-tokenize"
"""How the names of a service's tokenizer threads begin."""


class Instant:
    """Gives every row at once what the model's engine gave for one."""

    def __init__(self, model: Model) -> None:
        self.target = model.target
        self.concurrency = model.executor.concurrency
        self._per_token = model.manifest.head.task == "token-classify"
        (row,) = model.tokenizer.encode([TEXT], max_length=model.max_length)
        self._one = np.asarray(model.executor.run([row])[0])

    def run(self, rows: list[Row]) -> Sequence[Output] | Output:
        if self._per_token:
            return [np.resize(self._one, (len(row.ids), self._one.shape[-1])) for row in rows]
        return np.repeat(self._one[None], len(rows), axis=0)

    def describe(self) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


class Timed:
    """An executor, and the ``seconds`` in which at least one of its calls ran."""

    def __init__(self, executor: Executor) -> None:
        self.target = executor.target
        self.concurrency = executor.concurrency
        self.seconds = 0.0
        self._executor = executor
        self._counting = threading.Lock()
        self._calls, self._since = 0, 0.0

    def run(self, rows: list[Row]) -> Sequence[Output] | Output:
        self._count(1)
        try:
            return self._executor.run(rows)
        finally:
            self._count(-1)

    def describe(self) -> dict[str, Any]:
        return self._executor.describe()

    def close(self) -> None:
        """The executor is its owner's to close."""

    def _count(self, change: int) -> None:
        with self._counting:
            now = time.perf_counter()
            if self._calls:
                self.seconds += now - self._since
            self._since = now
            self._calls += change


class Spent(NamedTuple):
    """Seconds, in all so far: CPU time of the event loop and of the tokenizer's threads; time in which the engine ran."""

    loop: float
    tokenizer: float
    engine: float


class Probe:
    """A client of a running server."""

    def __init__(self, engine: Timed, loop: threading.Thread, port: int, task: Task) -> None:
        self._engine, self._loop = engine, loop
        self._client = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
        self._task = task

    def ask(self, texts: int) -> float:
        """Seconds until the answer to a request of so many texts is there. Raises EngineError."""
        path, body = _request(self._task, [TEXT] * texts)
        began = time.perf_counter()
        self._client.request("POST", path, body, HEADERS)
        answer = self._client.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise EngineError(f"{path}: the server answers {answer.status} ({content[:200]!r}).")
        return time.perf_counter() - began

    def spent(self) -> Spent:
        tokenizers = [one for one in threading.enumerate() if one.name.startswith(TOKENIZER)]
        return Spent(_cpu_time(self._loop), sum(map(_cpu_time, tokenizers)), self._engine.seconds)

    def close(self) -> None:
        self._client.close()


@contextlib.contextmanager
def probing(model: Model, executor: Executor) -> Iterator[Probe]:
    """Serve the model with this executor on a free port of the loopback. Raises BeiError."""
    engine = Timed(executor)
    service = Service(model, max_queue_tokens=1 << 20, engines=[engine])
    options = Options()
    with (
        contextlib.closing(bind("127.0.0.1", 0)) as listener,
        application([service], options, ColdStart()) as app,
    ):
        server = _Server(server_config(app, options))
        thread = threading.Thread(target=server.run, args=([listener],), name="bei-probe")
        thread.start()
        try:
            if not server.ready.wait(START_SECONDS):
                raise EngineError("bei-plan: the server does not start here, so its cost cannot be measured.")
            with contextlib.closing(
                Probe(engine, thread, listener.getsockname()[1], model.manifest.head.task)
            ) as probe:
                yield probe
        finally:
            server.should_exit = True
            thread.join()


class _Server(uvicorn.Server):
    """Tells when it answers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.ready.set()


def _cpu_time(thread: threading.Thread) -> float:
    """Seconds of a thread that runs."""
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def _request(task: Task, texts: Sequence[str]) -> tuple[str, bytes]:
    """Path and body of the task's usual request."""
    if task == "embed":
        return "/v1/embeddings", msgspec.json.encode({"input": texts})
    if task == "rerank":
        return "/rerank", msgspec.json.encode({"query": TEXT, "texts": texts})
    path = "/predict" if task == "classify" else "/predict_tokens"
    return path, msgspec.json.encode({"inputs": [[text] for text in texts]})
