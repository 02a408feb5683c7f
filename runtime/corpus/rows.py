"""One row of a corpus: its id and its text or pair of texts, or why it has none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bei.runtime.tokenizer import Pair

IdType = Literal["int64", "string"]

INT64 = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row whose file holds no values for it, and why."""

    reason: str


Cells = tuple[object, ...]
"""A row's values as they were read: of the text columns in order, then the id's where there is an id column."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """``file`` is an index into the job's inputs, ``row`` the row's place in that file. ``text`` is None exactly where
    ``reason`` says why the row cannot be processed."""

    file: int
    row: int
    id: int | str | None
    text: str | Pair | None = None
    reason: str | None = None


def checked(
    cells: Cells | Unreadable, *, file: int, row: int, number: int, columns: Sequence[str], ids: IdType | None
) -> Row:
    """The row of these values. ``ids`` is the id column's type; None where a row's id is its ``number``."""
    if isinstance(cells, Unreadable):
        return Row(file=file, row=row, id=None if ids else number, reason=cells.reason)
    texts, key = cells[: len(columns)], cells[-1] if ids else number
    reason = _id_problem(key, ids) if ids else None
    for name, text in zip(columns, texts, strict=True):
        reason = reason or _text_problem(name, text)
    shown = key if isinstance(key, int | str) and not isinstance(key, bool) else None
    if ids == "string" and shown is not None:
        shown = str(shown)
    if reason is not None:
        return Row(file=file, row=row, id=shown, reason=reason)
    text = str(texts[0]) if len(texts) == 1 else (str(texts[0]), str(texts[1]))
    return Row(file=file, row=row, id=shown, text=text)


def _id_problem(key: object, ids: IdType) -> str | None:
    if key is None:
        return "its id is null"
    if isinstance(key, Unreadable):
        return f"its id {key.reason}"
    if isinstance(key, bool) or not isinstance(key, int | str):
        return f"its id is {type(key).__name__}, need a text or an integer"
    if ids == "int64" and (not isinstance(key, int) or key not in INT64):
        return f"its id {key!r:.40} is not a 64-bit integer as the first row's is"
    return _surrogate("its id", key) if isinstance(key, str) else None


def _text_problem(name: str, text: object) -> str | None:
    if isinstance(text, str):
        return _surrogate(name, text)
    if isinstance(text, Unreadable):
        return f"{name} {text.reason}"
    return f"{name} is null" if text is None else f"{name} is {type(text).__name__}, need a text"


def _surrogate(name: str, text: str) -> str | None:
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # how undecodable bytes come out of "surrogateescape"
            return f"{name} is not UTF-8 (byte 0x{code - 0xDC00:02x} at character {error.start})"
        return f"{name} holds a lone surrogate U+{code:04X} at character {error.start}"
    return None
