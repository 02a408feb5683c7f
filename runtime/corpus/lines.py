"""Rows of files made of lines: text, JSON lines, CSV. Compressed ones too, by their names' ending.

Lines are read one after the other with a limit, so that no file, whatever it holds, needs more memory than one row.
"""

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

import msgspec
import pyarrow as pa

from bei.errors import InputError
from bei.runtime.corpus.reader import Run, Wanted
from bei.runtime.corpus.rows import Cells, IdType, Unreadable
from bei.runtime.corpus.storage import Place, reading

MAX_LINE = 64 << 20
"""Bytes of a line; a longer one is skipped, and its row says so."""

PEEK = 100
"""Rows looked at before a job starts: where none of them is usable, the options are wrong."""

BUFFER = 1 << 20
BOM = b"\xef\xbb\xbf"

COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")

Line = tuple[int, int, bytes | None]
"""Where it begins, how many bytes it has with its end, and the bytes without it; None where there are too many."""


@contextmanager
def opened(place: Place, offset: int = 0) -> Iterator[BinaryIO]:
    """The file's bytes from ``offset`` on, decompressed; offsets count decompressed bytes."""
    with reading(place):
        codec = pa.Codec.detect(place.path).name if place.path.endswith(COMPRESSED) else None
        if codec is None:
            raw = place.filesystem.open_input_file(place.path)
            raw.seek(offset)
        else:
            raw = place.filesystem.open_input_stream(place.path, compression=codec)
        with io.BufferedReader(raw, BUFFER) as stream:
            if codec is not None:
                _skip(stream, offset)
            yield stream


def lines(stream: BinaryIO, offset: int = 0) -> Iterator[Line]:
    """Every line of a stream that begins at ``offset``."""
    while line := stream.readline(MAX_LINE):
        size, whole = len(line), line.endswith(b"\n") or len(line) < MAX_LINE
        while not whole:
            rest = stream.readline(MAX_LINE)
            size, whole = size + len(rest), rest.endswith(b"\n") or len(rest) < MAX_LINE
        bare = line.removeprefix(BOM) if offset == 0 else line
        yield offset, size, bare.rstrip(b"\r\n") if size <= MAX_LINE else None
        offset += size


@dataclass(frozen=True, kw_only=True, slots=True)
class LineReader:
    """Text or JSON lines; blank lines are no rows. ``parse`` gives a line's cells."""

    place: Place
    wanted: Wanted
    parse: Callable[[bytes], Cells | Unreadable]

    def check(self) -> IdType | None:
        rows = list(islice(self.rows(0, 0), PEEK))
        usable = [row for row in rows if not isinstance(row, Unreadable)]
        unusable = [row for row in rows if isinstance(row, Unreadable)]
        if unusable and not usable:
            raise InputError(
                f"{self.place.uri}: the first row {unusable[0].reason}, and none of the first {len(rows)} is usable. "
                "Check --column, --id-column and --format, or leave the file out."
            )
        if self.wanted.id_column is None or not usable:
            return None
        return "int64" if all(isinstance(row[-1], int) for row in usable) else "string"

    def runs(self) -> Iterator[Run]:
        with opened(self.place) as stream:
            for offset, size, line in lines(stream):
                if line is None or line.strip():
                    yield Run(rows=1, nbytes=size, offset=offset)

    def rows(self, row: int, offset: int) -> Iterator[Cells | Unreadable]:
        with opened(self.place, offset) as stream:
            for _, size, line in lines(stream, offset):
                if line is None:
                    yield too_long(size)
                elif line.strip():
                    yield self.parse(line)


def text_reader(place: Place, wanted: Wanted) -> LineReader:
    """Every line is a text. Raises InputError where more than one column is wanted."""
    if len(wanted.names) > 1:
        raise InputError(
            f"{place.uri}: a text file has one text a line, but {' and '.join(wanted.names)} are asked for. "
            "Use JSON lines, CSV or Parquet."
        )
    return LineReader(place=place, wanted=wanted, parse=_text)


def json_reader(place: Place, wanted: Wanted) -> LineReader:
    """Every line is an object with the wanted keys, or a text alone where one column is wanted."""
    return LineReader(place=place, wanted=wanted, parse=lambda line: _object(line, wanted.names))


@dataclass(frozen=True, kw_only=True, slots=True)
class CsvReader:
    """Comma or tab separated, with a header; a quoted field may hold line ends."""

    place: Place
    wanted: Wanted
    delimiter: str = ","

    def check(self) -> IdType | None:
        names = self.header()
        for name in self.wanted.names:
            if names.count(name) != 1:
                what = "no column" if name not in names else "more than one column"
                raise InputError(
                    f"{self.place.uri}: {what} {name!r} (it has {', '.join(names[:20])}). "
                    f"Name one with {self.wanted.option(name)}."
                )
        return "string"

    def header(self) -> list[str]:
        """Names of the columns. Raises InputError where there is none."""
        with opened(self.place) as stream:
            for _, _, record in self._records(stream, 0):
                if isinstance(record, Unreadable):
                    raise InputError(f"{self.place.uri}: its header cannot be read: {record.reason}.")
                return record
        raise InputError(f"{self.place.uri}: empty, need a header with the names of the columns.")

    def runs(self) -> Iterator[Run]:
        with opened(self.place) as stream:
            records = self._records(stream, 0)
            next(records, None)
            for offset, size, _ in records:
                yield Run(rows=1, nbytes=size, offset=offset)

    def rows(self, row: int, offset: int) -> Iterator[Cells | Unreadable]:
        names = self.header()
        places = [names.index(name) for name in self.wanted.names]
        with opened(self.place, offset) as stream:
            for _, _, record in self._records(stream, offset):
                if isinstance(record, Unreadable):
                    yield record
                elif len(record) != len(names):
                    yield Unreadable(f"has {len(record)} fields, need {len(names)} as in the header")
                else:
                    yield tuple(record[place] for place in places)

    def _records(self, stream: BinaryIO, offset: int) -> Iterator[tuple[int, int, list[str] | Unreadable]]:
        """Where each record begins, its bytes, its fields."""
        csv.field_size_limit(MAX_LINE)
        end = start = offset

        def texts() -> Iterator[str]:
            nonlocal end
            for at, size, line in lines(stream, offset):
                end = at + size
                # one field too long for the parser, which then says so
                text = "x" * (MAX_LINE + 1) if line is None else line.decode("utf-8", "surrogateescape")
                yield text + "\n"

        parser = csv.reader(texts(), delimiter=self.delimiter, strict=True)
        while True:
            record: list[str] | Unreadable
            try:
                record = next(parser)
            except StopIteration:
                return
            except csv.Error as error:
                record = Unreadable(f"is not valid CSV ({error})")
            if record:  # a blank line is no row
                yield start, end - start, record
            start = end


def too_long(size: int) -> Unreadable:
    return Unreadable(f"has {size} bytes, more than {MAX_LINE}")


def _text(line: bytes) -> Cells | Unreadable:
    return (line.decode("utf-8", "surrogateescape"),)


def _object(line: bytes, wanted: tuple[str, ...]) -> Cells | Unreadable:
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Unreadable(f"is not valid JSON ({error})")
    except RecursionError:
        return Unreadable("is nested too deeply")
    if isinstance(value, str) and len(wanted) == 1:
        return (value,)
    if not isinstance(value, dict):
        return Unreadable(f"is {type(value).__name__}, need an object")
    missing = [name for name in wanted if name not in value]
    if missing:
        return Unreadable(f"has no {missing[0]!r} (it has {', '.join(list(value)[:8]) or 'nothing'})")
    return tuple(value[name] for name in wanted)


def _skip(stream: BinaryIO, count: int) -> None:
    while count:
        skipped = len(stream.read(min(count, BUFFER)))
        if not skipped:
            return
        count -= skipped
