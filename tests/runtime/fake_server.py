"""bei-serve as a process of its own, whose engines are fakes that answer at once, or fail, or wait, as their rows ask.

    python -m tests.runtime.fake_server [--die-after N] BUNDLE… [options of bei-serve]

GET /tasks tells how many asyncio tasks and open files the server has.
"""

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.runtime.tiny import DIM, VOCAB, Array

from bei.errors import EngineLost
from bei.manifest import EngineRecord, Manifest
from bei.runtime import cli, serve
from bei.runtime.executor import Ids, Output, Row
from bei.runtime.executors import registry

RAISES, WAITS = VOCAB["query"], VOCAB["world"]
WAIT_SECONDS = 1.0


def vector(ids: Ids | Sequence[int], width: int = DIM) -> Array:
    """What a fake engine answers for a row: a unit vector, or a single logit, that each sequence of ids has for itself."""
    weighed = float(np.dot(np.asarray(ids, np.float64), np.arange(1, len(ids) + 1)))
    angles = np.arange(1, width + 1) * (0.1 + weighed * 0.61803398875)
    values = np.sin(angles) + 0.01
    return np.asarray(values / np.linalg.norm(values) if width > 1 else values, np.float32)


class FakeExecutor:
    """Raises for rows with the word "query", waits for those with "world"; lost for good after ``die_after`` batches."""

    def __init__(self, target: str, width: int, die_after: int | None) -> None:
        self.target = target
        self.concurrency = 1
        self._width, self._left = width, die_after

    def run(self, rows: list[Row]) -> list[Output]:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise EngineLost("the fake device is gone")
        if any(RAISES in row.ids for row in rows):
            raise ValueError("asked to fail")
        if any(WAITS in row.ids for row in rows):
            time.sleep(WAIT_SECONDS)
        return [vector(row.ids, self._width) for row in rows]

    def describe(self) -> dict[str, Any]:
        return {"device": "fake"}

    def close(self) -> None: ...


def main() -> int:
    arguments = sys.argv[1:]
    die_after = None
    if arguments[0] == "--die-after":
        die_after, arguments = int(arguments[1]), arguments[2:]
    made = 0

    def create(
        path: Path, record: EngineRecord, manifest: Manifest, *, threads: int | None = None, device: int = 0
    ) -> FakeExecutor:
        nonlocal made
        made += 1
        head = manifest.head
        width = head.dimensions if head.task == "embed" else len(head.labels)
        return FakeExecutor(record.target, width, die_after if made == 1 else None)

    stats_routes: Any = vars(serve)["stats_routes"]

    async def tasks(request: Request) -> Response:
        return JSONResponse({"tasks": len(asyncio.all_tasks()), "files": len(os.listdir("/proc/self/fd"))})

    registry.create = create  # type: ignore[assignment]
    vars(serve)["stats_routes"] = lambda *given: [*stats_routes(*given), Route("/tasks", tasks)]
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
