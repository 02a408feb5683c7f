"""Rows of Parquet files, and of Arrow files and streams (which is how `datasets` saves to disk)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bei.errors import InputError
from bei.runtime.corpus.reader import Run, Wanted
from bei.runtime.corpus.rows import Cells, IdType, Unreadable
from bei.runtime.corpus.storage import Place, reading

BATCH = 1024
"""Rows decoded at a time."""

ARROW_MAGIC = b"ARROW1"


@dataclass(frozen=True, kw_only=True, slots=True)
class ParquetReader:
    """Runs are row groups; an offset is a row group's index."""

    place: Place
    wanted: Wanted

    def check(self) -> IdType | None:
        with self._opened() as file:
            return _check(file.schema_arrow, self.place, self.wanted)

    def runs(self) -> Iterator[Run]:
        with self._opened() as file:
            columns = [i for i in range(len(file.schema)) if file.schema.column(i).path in self.wanted.names]
            for index in range(file.num_row_groups):
                group = file.metadata.row_group(index)
                nbytes = sum(group.column(i).total_uncompressed_size for i in columns)
                yield Run(rows=group.num_rows, nbytes=nbytes, offset=index)

    def rows(self, row: int, offset: int) -> Iterator[Cells | Unreadable]:
        with self._opened() as file:
            skip = row - sum(file.metadata.row_group(index).num_rows for index in range(offset))
            for index in range(offset, file.num_row_groups):
                batches = file.iter_batches(BATCH, row_groups=[index], columns=list(self.wanted.names))
                for batch in batches:
                    yield from _rows(batch.slice(min(skip, batch.num_rows)), self.wanted.names)
                    skip = max(0, skip - batch.num_rows)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        with (
            reading(self.place),
            self.place.filesystem.open_input_file(self.place.path) as source,
            pq.ParquetFile(source, pre_buffer=not self.place.local) as file,
        ):
            yield file


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrowReader:
    """Runs are record batches; an offset is a batch's index."""

    place: Place
    wanted: Wanted

    def check(self) -> IdType | None:
        with self._opened() as (schema, _):
            return _check(schema, self.place, self.wanted)

    def runs(self) -> Iterator[Run]:
        with self._opened() as (_, batches):
            for index, batch in enumerate(batches):
                nbytes = sum(batch.column(name).nbytes for name in self.wanted.names)
                yield Run(rows=batch.num_rows, nbytes=nbytes, offset=index)

    def rows(self, row: int, offset: int) -> Iterator[Cells | Unreadable]:
        skip = row
        with self._opened() as (_, batches):
            for whole in batches:
                batch = whole.slice(min(skip, whole.num_rows))
                skip = max(0, skip - whole.num_rows)
                for start in range(0, batch.num_rows, BATCH):
                    yield from _rows(batch.slice(start, BATCH), self.wanted.names)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Iterator[Any]]]:
        with reading(self.place):
            if self.place.local:
                source = pa.memory_map(self.place.path)
            else:
                source = self.place.filesystem.open_input_file(self.place.path)
            with source:
                is_file = source.read(len(ARROW_MAGIC)) == ARROW_MAGIC
                source.seek(0)
                if is_file:
                    file = pa.ipc.open_file(source)
                    yield file.schema, (file.get_batch(i) for i in range(file.num_record_batches))
                else:
                    stream = pa.ipc.open_stream(source)
                    yield stream.schema, iter(stream)


def _check(schema: pa.Schema, place: Place, wanted: Wanted) -> IdType | None:
    """The id column's type. Raises InputError where a column is missing or of a type that no row could satisfy."""
    for name in wanted.names:
        if schema.names.count(name) != 1:
            what = "no column" if name not in schema.names else "more than one column"
            raise InputError(
                f"{place.uri}: {what} {name!r} (it has {', '.join(schema.names[:20])}). "
                f"Name one with {wanted.option(name)}."
            )
        may_count = name == wanted.id_column
        if not (_is_text(_plain(schema, name)) or (may_count and pa.types.is_integer(_plain(schema, name)))):
            need = "text or integers" if may_count else "text"
            raise InputError(
                f"{place.uri}: column {name!r} holds {schema.field(name).type}, need {need}. "
                f"Name another with {wanted.option(name)}."
            )
    if wanted.id_column is None:
        return None
    return "int64" if pa.types.is_integer(_plain(schema, wanted.id_column)) else "string"


def _plain(schema: pa.Schema, name: str) -> pa.DataType:
    kind = schema.field(name).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _rows(batch: pa.RecordBatch, names: Sequence[str]) -> Iterator[Cells]:
    return zip(*(_values(batch.column(name)) for name in names), strict=True)


def _values(array: pa.Array) -> list[object]:
    try:
        values: list[object] = array.to_pylist()
    except UnicodeDecodeError:  # pyarrow does not check what a file claims to be UTF-8
        values = [_value(scalar) for scalar in array]
    return values


def _value(scalar: pa.Scalar) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return Unreadable(f"is not UTF-8 ({error.reason} at byte {error.start})")
