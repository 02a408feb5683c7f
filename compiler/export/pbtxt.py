"""Protocol buffer text, as Triton's config.pbtxt is written."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import msgspec


class Enum(str):
    """A word that is written without quotes, such as TYPE_INT64."""

    __slots__ = ()


Scalar = str | int | bool
Message: TypeAlias = "Mapping[str, Scalar | Message | Sequence[Scalar | Message]]"


def text(message: Message) -> str:
    """``message`` as text; a list is a repeated field."""
    return "".join(f"{line}\n" for line in _lines(message))


def entry(key: str, value: "Scalar | Message") -> Message:
    """One entry of a map field."""
    return {"key": key, "value": value}


def _lines(message: Message) -> Iterator[str]:
    for name, value in message.items():
        if isinstance(value, Sequence) and not isinstance(value, str):
            if all(isinstance(item, str | int) for item in value):
                yield f"{name}: [{', '.join(_scalar(item) for item in value if isinstance(item, str | int))}]"
                continue
            for item in value:
                yield from _field(name, item)
        else:
            yield from _field(name, value)


def _field(name: str, value: "Scalar | Message") -> Iterator[str]:
    if isinstance(value, Mapping):
        yield f"{name} {{"
        yield from (f"  {line}" for line in _lines(value))
        yield "}"
    else:
        yield f"{name}: {_scalar(value)}"


def _scalar(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Enum | int):
        return str(value)
    return msgspec.json.encode(value).decode()
