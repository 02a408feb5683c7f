"""One shard: its rows through the model, and what came out into a file. The same on one machine and on many."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from bei.errors import BeiError, EngineError, InputError
from bei.runtime.corpus.columns import Columns, columns_of
from bei.runtime.corpus.job import Job
from bei.runtime.corpus.rows import Row
from bei.runtime.corpus.shards import Shard
from bei.runtime.corpus.storage import Place, write
from bei.runtime.model import Model

SLICE = 1024
"""Rows given to the model at a time: often enough to show progress, and little to repeat when one of them is bad."""

PARTS = 16
"""Into which rows that failed together are divided, to find the one that is to blame."""

WORKER = f"{os.uname().nodename}:{os.getpid()}"

Advance = Callable[[int], None]
"""Told how many more rows are done; may be called from any thread."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A row that could not be processed: its id (None where that is the trouble), where it stands, counted from 0, and
    why."""

    id: int | str | None
    file: str
    row: int
    reason: str


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A shard's counts: ``failed`` of its ``rows`` are in the side file; and who did it (host and process)."""

    shard: int
    rows: int
    failed: int
    worker: str = WORKER


class Worker:
    """Writes shards of a job. Safe to use from several threads."""

    def __init__(self, model: Model, job: Job, out: Place) -> None:
        self._model, self._job, self._out = model, job, out
        options = job.options
        self._columns: Columns = columns_of(
            model.manifest,
            prompt_name=options.prompt_name,
            dimensions=options.dimensions,
            dtype=options.dtype,
            ranges=job.ranges,
        )
        self._schema = pa.schema(
            [
                pa.field("id", pa.string() if job.ids == "string" else pa.int64(), nullable=False),
                *self._columns.schema(),
            ],
            metadata=_metadata(job, model),
        )

    def run(self, shard: Shard, rows: Sequence[Row], advance: Advance = lambda count: None) -> Done:
        """Compute and write. The shard's own file comes last: once it is there, all of the shard is.

        Raises BeiError where it is not one row that is to blame.
        """
        failed = [(row, row.reason) for row in rows if row.reason is not None]
        advance(len(failed))
        good = [row for row in rows if row.reason is None]
        kept: list[Row] = []
        answers: list[Any] = []
        for start in range(0, len(good), SLICE):
            part = good[start : start + SLICE]
            for row, answer in self._answers(part):
                if isinstance(answer, BeiError):
                    failed.append((row, _reason(answer)))
                else:
                    kept.append(row)
                    answers.append(answer)
            advance(len(part))
        self._write(shard, kept, answers, failed)
        return Done(shard=shard.index, rows=shard.rows, failed=len(failed))

    def _answers(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Any]]:
        """Each row with its answer, or the error that is its own."""
        try:
            answers = self._columns.run(self._model, [row.text for row in rows if row.text is not None])
        except (InputError, EngineError) as error:
            if len(rows) > 1:
                size = -(-len(rows) // PARTS)
                for start in range(0, len(rows), size):
                    yield from self._answers(rows[start : start + size])
                return
            if isinstance(error, EngineError):
                self._model.warm_up()  # raises if it is the engine and not the row
            yield rows[0], error
        else:
            yield from zip(rows, answers, strict=True)

    def _write(
        self, shard: Shard, rows: Sequence[Row], answers: Sequence[Any], failed: Sequence[tuple[Row, str]]
    ) -> None:
        ids = pa.array([row.id for row in rows], self._schema.field("id").type)
        table = pa.Table.from_arrays([ids, *self._columns.arrays(answers)], schema=self._schema)
        if failed:
            ordered = sorted(failed, key=lambda one: (one[0].file, one[0].row))
            lines = [msgspec.json.encode(self._failure(*one)) + b"\n" for one in ordered]
            write(self._out, shard.failed_name, b"".join(lines))
        sink = pa.BufferOutputStream()
        vectors = self._job.task == "embed"  # these do not compress
        pq.write_table(
            table, sink, compression={"id": "zstd"} if vectors else "zstd", use_dictionary=not vectors
        )
        write(self._out, shard.name, sink.getvalue())

    def _failure(self, row: Row, reason: str) -> Failure:
        return Failure(id=row.id, file=self._job.inputs[row.file].uri, row=row.row, reason=reason)


def _reason(error: BeiError) -> str:
    """The message without the row's index in its call, which means nothing outside."""
    return re.sub(r"^input 0: ", "", str(error))


def _metadata(job: Job, model: Model) -> dict[str, str]:
    """What a reader of one file may need to know about it."""
    facts = {
        "bei.model": job.model,
        "bei.bundle": job.bundle,
        "bei.target": job.target,
        "bei.dtype": job.options.dtype,
    }
    if job.ranges is not None:
        facts["bei.int8_ranges"] = msgspec.json.encode(job.ranges).decode()
    if model.manifest.head.labels:
        facts["bei.labels"] = msgspec.json.encode(model.manifest.head.labels).decode()
    return facts
