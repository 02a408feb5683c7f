"""The user's own texts: txt, jsonl, csv or parquet to samples.

A row is one text (column or key ``text``, optionally ``pair``) or, for rerankers, ``query`` with ``document`` or a list
``documents``; rows of one query are one group. In a txt file every line that is not blank is a text.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from bei.compiler.parity.texts import Sample
from bei.errors import ParityError

Rows = Iterator[tuple[str, object]]
"""Where a row stands ("line 3"), and the row."""


def read_texts(path: Path) -> tuple[Sample, ...]:
    """Samples in file order. Raises ParityError naming the file and the line."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ParityError(f"{path}: unknown kind of text file (need {', '.join(READERS)}).")
    groups: dict[str, int] = {}
    try:
        samples = tuple(
            sample for where, row in reader(path) for sample in _samples(row, f"{path.name}: {where}", groups)
        )
    except UnicodeDecodeError as error:
        raise ParityError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}). Convert it.") from None
    except OSError as error:
        raise ParityError(f"{path}: cannot be read ({error.strerror or error}).") from None
    if not samples:
        raise ParityError(f"{path}: no texts in it (need at least 1).")
    return samples


def _samples(row: object, where: str, groups: dict[str, int]) -> Iterator[Sample]:
    if isinstance(row, str):
        yield Sample(kind="user", text=_text(row, where))
    elif not isinstance(row, Mapping):
        raise ParityError(f"{where}: got {_kind(row)}, need a text or an object with 'text' or 'query'.")
    elif row.get("query") is not None:
        query = _text(row["query"], where)
        group = groups.setdefault(query, len(groups))
        for document in _documents(row, where):
            yield Sample(kind="user", text=query, pair=document, group=group)
    elif row.get("text") is not None:
        pair = None if row.get("pair") is None else _text(row["pair"], where)
        yield Sample(kind="user", text=_text(row["text"], where), pair=pair)
    else:
        have = ", ".join(str(key) for key in row) or "none"
        raise ParityError(f"{where}: no 'text' and no 'query' (got {have}).")


def _documents(row: Mapping[Any, object], where: str) -> Iterator[str]:
    documents = row.get("documents")
    if documents is None:
        documents = [row.get("document")]
    if not isinstance(documents, list) or not documents:
        raise ParityError(f"{where}: 'documents' is {_kind(documents)}, need a list with at least 1 text.")
    yield from (_text(document, where) for document in documents)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ParityError(f"{where}: {_kind(value)} where a text is needed.")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise ParityError(f"{where}: the text holds a lone surrogate, which is no character. Remove it.")
    return value


def _kind(value: object) -> str:
    return "an empty text" if isinstance(value, str) else type(value).__name__


def _txt(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"line {number}", line.rstrip("\n")


def _jsonl(path: Path) -> Rows:
    for where, line in _txt(path):
        try:
            yield where, json.loads(str(line))
        except json.JSONDecodeError as error:
            raise ParityError(f"{path.name}: {where}: not valid JSON ({error.msg}).") from None
        except RecursionError:
            raise ParityError(f"{path.name}: {where}: nested too deeply.") from None


def _csv(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                yield f"line {reader.line_num}", row
        except csv.Error as error:
            raise ParityError(f"{path.name}: line {reader.line_num}: {error}. Use jsonl instead.") from None


def _parquet(path: Path) -> Rows:
    try:
        arrow: Any = import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise ParityError(
            f"{path}: reading parquet needs pyarrow. Run: pip install pyarrow, or give jsonl instead."
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            have = set(file.schema_arrow.names)
            columns = [name for name in ("text", "pair", "query", "document", "documents") if name in have]
            batches: Iterable[Any] = file.iter_batches(columns=columns)
            yield from _numbered(row for batch in batches for row in batch.to_pylist())
    except arrow.ArrowException as error:
        raise ParityError(f"{path}: not a readable parquet file ({error}).") from None


def _numbered(rows: Iterable[object]) -> Rows:
    for number, row in enumerate(rows, 1):
        yield f"row {number}", row


READERS: dict[str, Callable[[Path], Rows]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}
