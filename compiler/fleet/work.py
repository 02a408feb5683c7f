"""Units of work that any process can do: a request goes in as JSON, an answer comes out as JSON."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """``memory``: bytes that it takes at its peak. ``gpu``: it uses the GPU of the machine it is on; ``sm``: it needs a
    GPU of that kind."""

    request: bytes
    memory: int
    gpu: bool = False
    sm: int | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """``result`` as JSON, or the reason why there is none: ``lost``."""

    result: msgspec.Raw = msgspec.Raw(b"null")
    lost: str | None = None


class Machine(Protocol):
    """What does work: processes here, or a cluster."""

    def run(self, works: Iterable[Work]) -> Iterator[tuple[Work, Answer]]:
        """Do all of it, in any order, telling of each when it is done; ``works`` is read as there is room. Work that
        cannot be done, or whose process dies, is lost, and the rest goes on. Raises BeiError where nothing can be done."""


def encoded(task: msgspec.Struct) -> bytes:
    """A task as a request: JSON on one line."""
    return msgspec.json.encode(task, enc_hook=str)


def answered(do: Callable[[], Any]) -> bytes:
    """The answer of a function, whatever it raises."""
    try:
        answer = Answer(result=msgspec.Raw(msgspec.json.encode(do())))
    except Exception as error:  # noqa: BLE001 (a fault of ours in one unit must not end the others)
        answer = Answer(lost=f"{type(error).__name__}: {' '.join(str(error).split())}")
    return msgspec.json.encode(answer)
