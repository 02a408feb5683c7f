"""The application of `bei.runtime.ray_serve` over the engines of `fake_server`; a row with "poison" ends one for good."""

from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from tests.runtime.fake_server import FakeExecutor
from tests.runtime.tiny import POISON

from bei.manifest import EngineRecord, Manifest
from bei.runtime import ray_serve
from bei.runtime.executor import Output, Row
from bei.runtime.executors import registry
from bei.runtime.ray_arguments import Arguments, read_arguments


class Mortal(FakeExecutor):
    def run(self, rows: list[Row]) -> list[Output]:
        if any(POISON in row.ids for row in rows):
            self._left = 0
        return super().run(rows)


class Replica(ray_serve.Replica):
    def __init__(self, arguments: Arguments) -> None:
        registry.create = create  # type: ignore[assignment]
        super().__init__(arguments)


def create(
    path: Path, record: EngineRecord, manifest: Manifest, *, threads: int | None = None, device: int = 0
) -> FakeExecutor:
    return Mortal(record.target, manifest.head.dimensions, None)


def build(args: dict[str, Any], **options: Any) -> Application:
    """``options`` of the deployment."""
    made = ray_serve.DEPLOYMENT.options(func_or_class=serve.ingress()(Replica), **options)
    return made.bind(read_arguments(args))
