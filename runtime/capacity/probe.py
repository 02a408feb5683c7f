"""The real server over an engine that answers at once, and one client: what is left of a request is the server's own."""

import asyncio
import contextlib
import http.client
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import uvicorn

from bei.errors import EngineError
from bei.manifest import Task
from bei.runtime.cold_start import ColdStart
from bei.runtime.executor import Output, Row
from bei.runtime.listen import bind
from bei.runtime.model import Model
from bei.runtime.serve import Options, application, server_config
from bei.runtime.service import Service

TEXT = "what a server adds to a text of a dozen words or so"
START_SECONDS = 60
HEADERS = {"content-type": "application/json"}


class Instant:
    """Gives every row what the engine gave for one."""

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


class Probe:
    """A client of a running server."""

    def __init__(self, server: "_Server", port: int, task: Task) -> None:
        self._server = server
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

    def loop_seconds(self) -> float:
        """CPU time that the server's event loop has used."""

        async def of_this_thread() -> float:
            return time.thread_time()

        return asyncio.run_coroutine_threadsafe(of_this_thread(), self._server.loop).result(START_SECONDS)

    def close(self) -> None:
        self._client.close()


@contextlib.contextmanager
def probing(model: Model) -> Iterator[Probe]:
    """Serve the model with an instant engine on a free port of the loopback. Raises BeiError."""
    service = Service(model, max_queue_tokens=1 << 20, engines=[Instant(model)])
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
                Probe(server, listener.getsockname()[1], model.manifest.head.task)
            ) as probe:
                yield probe
        finally:
            server.should_exit = True
            thread.join()


class _Server(uvicorn.Server):
    """Tells when it answers, and in which loop."""

    loop: asyncio.AbstractEventLoop

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.loop = asyncio.get_running_loop()
        self.ready.set()


def _request(task: Task, texts: Sequence[str]) -> tuple[str, bytes]:
    """Path and body of the task's usual request."""
    if task == "embed":
        return "/v1/embeddings", msgspec.json.encode({"input": texts})
    if task == "rerank":
        return "/rerank", msgspec.json.encode({"query": TEXT, "texts": texts})
    path = "/predict" if task == "classify" else "/predict_tokens"
    return path, msgspec.json.encode({"inputs": [[text] for text in texts]})
