"""Before the first shard: what is asked for is checked, and becomes a job on disk, new or the one that was begun."""

import contextlib
import fcntl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from bei.errors import InputError
from bei.manifest import Manifest, Task
from bei.runtime.bundle import Bundle
from bei.runtime.corpus.columns import columns_of
from bei.runtime.corpus.inputs import InputFile, check_inputs
from bei.runtime.corpus.job import Job, Options, check_same, read_job, write_job
from bei.runtime.corpus.rows import IdType
from bei.runtime.corpus.shards import Shard, ShardReader, cut
from bei.runtime.corpus.storage import Place, make_folder, remove_partial
from bei.runtime.model import Model
from bei.runtime.quantize import Ranges, ranges_of

LOCK_FILE = ".lock"

SAMPLE_SHARDS = 64
SAMPLE_ROWS = 64
"""int8 ranges come from the first rows of so many shards, evenly chosen: 4,096 vectors at most."""

COLUMNS: dict[Task, tuple[tuple[str, ...], range]] = {
    "embed": (("text",), range(1, 2)),
    "rerank": (("query", "document"), range(2, 3)),
    "classify": (("text",), range(1, 3)),
    "token-classify": (("text",), range(1, 2)),
}
"""The columns read where none are named, and how many a task takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What the user wants, checked as far as it can be without the engine. ``target`` None: any of the bundle's."""

    bundle: Bundle
    out: Place
    inputs: tuple[InputFile, ...]
    options: Options
    target: str | None

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """What reading the inputs told."""

    ids: IdType | None
    shards: tuple[Shard, ...]


def columns_for(task: Task, given: Sequence[str]) -> tuple[str, ...]:
    """The columns to read. Raises InputError for a number of them that the task does not take, and for a task whose
    answers are no rows of a table."""
    if task not in COLUMNS:
        raise InputError(f"bei-embed: cannot write what a model for {task!r} gives. Use Model.encode_tokens.")
    default, allowed = COLUMNS[task]
    if given and len(given) not in allowed:
        need = " or ".join(map(str, allowed))
        raise InputError(f"--column: got {len(given)}, a model for {task!r} needs {need}.")
    return tuple(given) or default


def check_options(manifest: Manifest, options: Options) -> None:
    """Raise InputError for an option that the model does not know."""
    columns_of(manifest, prompt_name=options.prompt_name, dimensions=options.dimensions, dtype=options.dtype)


@contextlib.contextmanager
def holding(out: Place) -> Iterator[None]:
    """The output folder, created, for this process alone (an object store cannot tell), and clean of partial files.

    Raises InputError where another process works in it.
    """
    make_folder(out)
    with contextlib.ExitStack() as stack:
        if out.local:
            lock = stack.enter_context(open(Path(out.path) / LOCK_FILE, "w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(
                    f"{out.uri}: another bei-embed is writing there. Wait for it to end."
                ) from None
        remove_partial(out)
        yield


def begun(asked: Asked) -> Job | None:
    """The job in the output folder, if there is one. Raises InputError unless it is the one asked for."""
    job = read_job(asked.out)
    if job is not None:
        check_same(
            job,
            asked.out,
            manifest=asked.manifest,
            target=asked.target,
            options=asked.options,
            inputs=asked.inputs,
        )
    return job


def cut_inputs(asked: Asked) -> Cut:
    """Look at all inputs once. Raises InputError for one that cannot be used."""
    wanted = asked.options.wanted
    ids = check_inputs(asked.inputs, wanted)
    shards = cut(asked.inputs, wanted, rows=asked.options.shard_rows)
    if not shards:
        raise InputError(
            f"{asked.inputs[0].uri}: no rows in it, nor in any other input. Nothing was written."
        )
    return Cut(ids=ids, shards=shards)


def begin(asked: Asked, found: Cut, target: str, ranges: Ranges | None) -> Job:
    """A new job, written to the output folder."""
    job = Job(
        model=asked.manifest.name,
        bundle=asked.manifest.digest,
        task=asked.manifest.head.task,
        target=target,
        options=asked.options,
        inputs=asked.inputs,
        ids=found.ids,
        ranges=ranges,
        shards=found.shards,
    )
    write_job(asked.out, job)
    return job


def sample_ranges(asked: Asked, found: Cut, model: Model) -> Ranges | None:
    """The int8 ranges of a sample of rows, None for other types. Raises InputError where no sampled row is usable."""
    options = asked.options
    if options.dtype != "int8":
        return None
    columns = columns_of(
        asked.manifest, prompt_name=options.prompt_name, dimensions=options.dimensions, dtype="float32"
    )
    reader = ShardReader(asked.inputs, options.wanted, found.ids)
    vectors: list[np.ndarray] = []
    step = -(-len(found.shards) // SAMPLE_SHARDS)
    for shard in found.shards[::step]:
        rows = reader.read(_beginning(shard, SAMPLE_ROWS))
        texts = [row.text for row in rows if row.text is not None]
        if texts:
            vectors.extend(columns.run(model, texts))
    if len(vectors) < 2:
        raise InputError(
            "--dtype int8: too few usable rows to see the vectors' ranges. Use float16 or float32."
        )
    return ranges_of(np.stack(vectors))


def _beginning(shard: Shard, rows: int) -> Shard:
    first = shard.segments[0]
    few = min(rows, first.rows)
    return Shard(shard.index, shard.first, few, (msgspec.structs.replace(first, rows=few),))
