"""Where the time of one request goes: the layers note their stages, and whoever began the record reads it.

A record lives in a context variable, so that the tokenizer and the scheduler need no parameter for it. Log lines, response
headers, metrics and trace spans are all made from the same record.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Name = Literal["tokenize", "queue", "run"]


class Stage(NamedTuple):
    """A stretch of time, in seconds of `time.perf_counter`."""

    name: Name
    began: float
    ended: float


@dataclass(slots=True)
class Record:
    """The stages of one request, and how much it held: ``rows`` for the engine and their ``tokens``."""

    stages: list[Stage] = field(default_factory=list)
    model: str = ""
    rows: int = 0
    tokens: int = 0

    def seconds(self, name: Name) -> float:
        """The time of all stages of that name."""
        return sum(stage.ended - stage.began for stage in self.stages if stage.name == name)


_current: ContextVar[Record | None] = ContextVar("bei_request", default=None)


def begin() -> Record:
    """A new record for what this task, and tasks made by it, do from now on."""
    record = Record()
    _current.set(record)
    return record


def current() -> Record | None:
    """The record of the request that this task works for."""
    return _current.get()


@contextmanager
def stage(name: Name) -> Iterator[None]:
    """Note the time inside; nothing when no record was begun."""
    began = time.perf_counter()
    try:
        yield
    finally:
        record = _current.get()
        if record is not None:
            record.stages.append(Stage(name, began, time.perf_counter()))
