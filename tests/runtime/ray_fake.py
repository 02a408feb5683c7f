"""The application of `bei.runtime.ray_serve` over fake engines that take as long as their rows say, or die."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve
from ray.serve import Application
from tests.runtime.fake_server import RAISES, WAITS, FakeExecutor, vector

from bei.errors import EngineLost
from bei.manifest import EngineRecord, Manifest
from bei.runtime import ray_serve
from bei.runtime.executor import Output, Row
from bei.runtime.executors import registry
from bei.runtime.ray_arguments import Arguments, read_arguments

SECONDS = 0.25
"""For each "world" of a batch's slowest row."""


class Engine(FakeExecutor):
    """Lost for good at a row with "query"."""

    def run(self, rows: list[Row]) -> list[Output]:
        if any(RAISES in row.ids for row in rows):
            raise EngineLost("asked to die")
        time.sleep(SECONDS * max(np.count_nonzero(row.ids == WAITS) for row in rows))
        return [vector(row.ids, self._width) for row in rows]


class Replica(ray_serve.Replica):
    def __init__(self, arguments: Arguments) -> None:
        registry.create = create  # type: ignore[assignment]
        super().__init__(arguments)


def create(
    path: Path, record: EngineRecord, manifest: Manifest, *, threads: int | None = None, device: int = 0
) -> FakeExecutor:
    return Engine(record.target, manifest.head.dimensions, None)


def build(args: dict[str, Any], **options: Any) -> Application:
    """``options`` of the deployment."""
    made = ray_serve.DEPLOYMENT.options(func_or_class=serve.ingress()(Replica), **options)
    return made.bind(read_arguments(args))
