"""A job on disk: ``job.json`` in the output folder says what is computed from what, and how it is cut.

It is written before the first shard and never changed. A shard whose file is there is done; a later run of the same
command does the others, and is refused where the bundle, an input or an option is another one.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

import bei
from bei.errors import InputError
from bei.manifest import Manifest, Task
from bei.runtime.corpus.inputs import InputFile
from bei.runtime.corpus.reader import Wanted
from bei.runtime.corpus.rows import IdType
from bei.runtime.corpus.shards import Shard
from bei.runtime.corpus.storage import Place, write
from bei.runtime.quantize import Ranges

JOB_FILE = "job.json"
SCHEMA_VERSION = 1

Dtype = Literal["float32", "float16", "int8", "binary"]
"""What vectors are stored as; int8 by column, see `bei.runtime.quantize`."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What decides the output, beside the bundle and the inputs."""

    columns: tuple[str, ...]
    id_column: str | None = None
    prompt_name: str | None = None
    dimensions: int | None = None
    dtype: Dtype = "float32"
    shard_rows: int = 16384

    @property
    def wanted(self) -> Wanted:
        return Wanted(columns=self.columns, id_column=self.id_column)


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``bundle`` is its manifest's digest, ``target`` the engine all shards are computed with, ``ids`` the id column's
    type; ``ranges`` are those of int8 vectors: anything to be compared with them needs the same."""

    schema_version: int = SCHEMA_VERSION
    bei_version: str = bei.__version__
    model: str
    bundle: str
    task: Task
    target: str
    options: Options
    inputs: tuple[InputFile, ...]
    ids: IdType | None
    ranges: Ranges | None
    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        """Of all inputs together."""
        return sum(shard.rows for shard in self.shards)


def read_job(out: Place) -> Job | None:
    """The job of an output folder; None where there is none. Raises InputError for anything else in there."""
    names = [info.base_name for info in out.list()]
    if JOB_FILE not in names:
        strange = [name for name in names if not name.startswith(".")]
        if strange:
            raise InputError(
                f"{out.uri}: holds {', '.join(strange[:3])} but no {JOB_FILE}. Give an empty or a new folder as --out."
            )
        return None
    try:
        return msgspec.json.decode(out.child(JOB_FILE).read(), type=Job)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{out.child(JOB_FILE).uri}: not a job that this bei {bei.__version__} can go on with ({error}). "
            "Give another --out."
        ) from None


def write_job(out: Place, job: Job) -> None:
    write(out, JOB_FILE, msgspec.json.encode(job) + b"\n")


def check_same(
    job: Job,
    out: Place,
    *,
    manifest: Manifest,
    target: str | None,
    options: Options,
    inputs: Sequence[InputFile],
) -> None:
    """Raise InputError, with all that differs, unless the job in ``out`` is the one asked for."""
    changes = [
        *_changed_bundle(job, manifest, target),
        *_changed_options(job.options, options),
        *_changed_inputs(job.inputs, inputs),
    ]
    if changes:
        shown = "".join(f"\n  {change}" for change in changes[:5])
        more = f"\n  and {len(changes) - 5} more" if len(changes) > 5 else ""
        raise InputError(
            f"{out.uri}: holds another job than the one asked for:{shown}{more}\n"
            "Give another --out, or remove that folder to start anew."
        )


def _changed_bundle(job: Job, manifest: Manifest, target: str | None) -> Iterator[str]:
    if job.bundle != manifest.digest:
        yield f"bundle: it is {job.model} with digest {job.bundle[:12]}, now {manifest.name} with {manifest.digest[:12]}"
    if target is not None and target != job.target:
        yield f"--target: it is {job.target}, now {target}"


def _changed_options(had: Options, asked: Options) -> Iterator[str]:
    for name in Options.__struct_fields__:
        before, now = getattr(had, name), getattr(asked, name)
        if before != now:
            yield f"{name}: it is {_shown(before)}, now {_shown(now)}"


def _changed_inputs(had: Sequence[InputFile], given: Sequence[InputFile]) -> Iterator[str]:
    before, now = {file.uri: file for file in had}, {file.uri: file for file in given}
    yield from (f"{uri}: is no longer among the inputs" for uri in before if uri not in now)
    yield from (f"{uri}: is a new input" for uri in now if uri not in before)
    yield from (f"{uri}: has changed" for uri in now if uri in before and now[uri] != before[uri])
    if before.keys() == now.keys() and list(before) != list(now):
        yield "inputs: they come in another order"


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
