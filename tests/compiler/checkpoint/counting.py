"""A Progress whose counts a test can read."""

from collections.abc import Iterator
from contextlib import contextmanager

from bei.compiler.progress import Stage, Unit


class Counting:
    """A Progress that adds up what its stages are told."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int | None]] = {}

    @contextmanager
    def stage(self, name: str, total: int | None = None, *, unit: Unit = "bytes") -> Iterator[Stage]:
        counts = self.stages[name] = [total, 0]

        class Counter:
            def advance(self, amount: int) -> None:
                counts[1] = (counts[1] or 0) + amount

        yield Counter()
