"""How a corpus is cut: shards of rows that follow one another, the unit of work, of resuming and of output files."""

from collections.abc import Iterator, Sequence

import msgspec

from bei.errors import InputError
from bei.runtime.corpus.inputs import InputFile, open_reader
from bei.runtime.corpus.reader import Wanted
from bei.runtime.corpus.rows import Cells, IdType, Row, Unreadable, checked

SHARD_BYTES = 64 << 20
"""Bytes of text after which a shard ends, whatever its rows: what one shard needs in memory is bounded."""


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """``rows`` rows of the input file with index ``file``, from its row number ``row`` on; ``offset`` is where the
    file's reader may begin."""

    file: int
    row: int
    rows: int
    offset: int


class Shard(msgspec.Struct, frozen=True, array_like=True):
    """Rows ``first`` to ``first + rows`` of the whole corpus."""

    index: int
    first: int
    rows: int
    segments: tuple[Segment, ...]

    @property
    def name(self) -> str:
        """The file that holds its output."""
        return f"part-{self.index:06}.parquet"

    @property
    def failed_name(self) -> str:
        """The file that says which of its rows could not be processed, and why."""
        return f"failed-{self.index:06}.jsonl"


def cut(
    files: Sequence[InputFile], wanted: Wanted, *, rows: int, nbytes: int = SHARD_BYTES
) -> tuple[Shard, ...]:
    """The whole corpus in shards of at most ``rows`` rows and about ``nbytes`` of text, of at least one row each.

    Raises InputError for a file that cannot be read to its end.
    """
    shards: list[Shard] = []
    pending: list[Segment] = []
    have_rows = have_bytes = first = 0

    def close() -> None:
        nonlocal have_rows, have_bytes, first
        shards.append(Shard(len(shards), first, have_rows, tuple(pending)))
        first += have_rows
        have_rows = have_bytes = 0
        pending.clear()

    for index, file in enumerate(files):
        row = 0
        for run in open_reader(file, wanted).runs():
            left, each = run.rows, run.nbytes / max(1, run.rows)
            while left:
                if have_rows and (have_rows >= rows or have_bytes + each > nbytes):
                    close()
                fitting = int((nbytes - have_bytes) / each) if each else left
                taken = max(1, min(left, rows - have_rows, fitting))
                _append(pending, Segment(index, row, taken, run.offset))
                row, left = row + taken, left - taken
                have_rows, have_bytes = have_rows + taken, have_bytes + int(taken * each)
    if have_rows:
        close()
    return tuple(shards)


def _append(segments: list[Segment], more: Segment) -> None:
    """Add rows, as one segment with those before them in the same file."""
    if segments and segments[-1].file == more.file:
        last = segments.pop()
        more = Segment(last.file, last.row, last.rows + more.rows, last.offset)
    segments.append(more)


class ShardReader:
    """Reads shards in any order; one that begins where the last ended costs no second look at what lies before."""

    def __init__(self, files: Sequence[InputFile], wanted: Wanted, ids: IdType | None) -> None:
        self._files = files
        self._wanted = wanted
        self._ids = ids
        self._open: Iterator[Cells | Unreadable] = iter(())
        self._stands_at = (-1, -1)

    def read(self, shard: Shard) -> list[Row]:
        """Its rows in order. Raises InputError for a damaged file, or one that has fewer rows than it had."""
        rows: list[Row] = []
        for segment in shard.segments:
            if self._stands_at != (segment.file, segment.row):
                self._open = open_reader(self._files[segment.file], self._wanted).rows(
                    segment.row, segment.offset
                )
            for row in range(segment.row, segment.row + segment.rows):
                cells = next(self._open, None)
                if cells is None:
                    uri = self._files[segment.file].uri
                    raise InputError(
                        f"{uri}: ends at row {row}, but had more when the job began. Start it anew."
                    )
                rows.append(
                    checked(
                        cells,
                        file=segment.file,
                        row=row,
                        number=shard.first + len(rows),
                        columns=self._wanted.columns,
                        ids=self._ids,
                    )
                )
            self._stands_at = (segment.file, segment.row + segment.rows)
        return rows
