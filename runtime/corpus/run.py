"""A job from beginning to end, on this machine or, with another `Machine`, on others."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import msgspec

from bei.runtime.corpus.job import Job
from bei.runtime.corpus.prepare import Asked, Cut, begin, begun, cut_inputs, holding, sample_ranges
from bei.runtime.corpus.progress import shown
from bei.runtime.corpus.shards import Shard, ShardReader
from bei.runtime.corpus.storage import Place
from bei.runtime.corpus.worker import Advance, Done, Worker
from bei.runtime.model import Model, load
from bei.runtime.quantize import Ranges

AT_ONCE = 2
"""Shards in work: while one is written, or the next one's first texts are tokenised, the other keeps the engine busy."""


class Machine(Protocol):
    """What computes shards."""

    def probe(self, asked: Asked, found: Cut) -> tuple[str, Ranges | None]:
        """The engine that all shards will be computed with, and the int8 ranges of a sample. Raises BeiError."""

    def run(self, job: Job, out: Place, shards: Sequence[Shard], advance: Advance) -> Iterator[Done]:
        """Compute and write the shards, telling of each when it is written; those written stay when one fails.

        Raises BeiError.
        """

    @property
    def tokens(self) -> int | None:
        """Run so far; None where nobody counts them."""


OpenMachine = Callable[[str | None], AbstractContextManager[Machine]]
"""Opens a machine for an engine (None: the first that works there). Raises BeiError."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """``rows`` of all inputs; ``written`` are in the output, ``failed`` in the side files. ``done_before`` rows were
    there already, the speeds are those of the others."""

    out: str
    model: str
    task: str
    target: str
    rows: int
    written: int
    failed: int
    done_before: int
    shards: int
    seconds: float
    texts_per_second: float | None
    tokens_per_second: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """How a machine loads the bundle; none of it changes what comes out."""

    threads: int | None = None
    allow_unverified: bool = False


class Here:
    """This process."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def probe(self, asked: Asked, found: Cut) -> tuple[str, Ranges | None]:
        return self._model.target, sample_ranges(asked, found, self._model)

    def run(self, job: Job, out: Place, shards: Sequence[Shard], advance: Advance) -> Iterator[Done]:
        reader = ShardReader(job.inputs, job.options.wanted, job.ids)
        worker = Worker(self._model, job, out)
        waiting: deque[Future[Done]] = deque()
        with ThreadPoolExecutor(AT_ONCE, "bei-shard") as pool:
            for shard in shards:
                waiting.append(pool.submit(worker.run, shard, reader.read(shard), advance))
                if len(waiting) > AT_ONCE:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    @property
    def tokens(self) -> int | None:
        return self._model.executor.tokens


@contextmanager
def here(bundle: str, options: LoadOptions, target: str | None) -> Iterator[Machine]:
    """This process with the bundle loaded. Raises BeiError."""
    with load(
        bundle, target=target, threads=options.threads, allow_unverified=options.allow_unverified
    ) as model:
        yield Here(model)


def run_job(asked: Asked, open_machine: OpenMachine, *, quiet: bool = False) -> Summary:
    """Begin the job, or go on with it, to its end. Raises BeiError."""
    started = time.perf_counter()
    with holding(asked.out):
        job = begun(asked)
        if job is not None and not missing(job, asked.out):
            return _summary(asked.out, job, job.rows, None, started)
        found = cut_inputs(asked) if job is None else None
        with open_machine(asked.target if job is None else job.target) as machine:
            if found is not None:
                job = begin(asked, found, *machine.probe(asked, found))
            assert job is not None
            return _run(asked.out, job, machine, started, quiet=quiet)


def missing(job: Job, out: Place) -> list[Shard]:
    """Shards without a file, in order."""
    there = {info.base_name for info in out.list()}
    return [shard for shard in job.shards if shard.name not in there]


def _run(out: Place, job: Job, machine: Machine, started: float, *, quiet: bool) -> Summary:
    shards = missing(job, out)
    before = job.rows - sum(shard.rows for shard in shards)
    with shown(total=job.rows, done=before, tokens=lambda: machine.tokens, quiet=quiet) as advance:
        for _ in machine.run(job, out, shards, advance):
            pass
    return _summary(out, job, before, machine.tokens, started)


def _summary(out: Place, job: Job, before: int, tokens: int | None, started: float) -> Summary:
    seconds = time.perf_counter() - started
    failed = _failed(job, out)
    fresh = job.rows - before
    return Summary(
        out=out.uri,
        model=job.model,
        task=job.task,
        target=job.target,
        rows=job.rows,
        written=job.rows - failed,
        failed=failed,
        done_before=before,
        shards=len(job.shards),
        seconds=round(seconds, 2),
        texts_per_second=round(fresh / seconds, 1) if fresh else None,
        tokens_per_second=round(tokens / seconds, 1) if tokens else None,
    )


def _failed(job: Job, out: Place) -> int:
    """Rows in the side files of all shards, of this run and of those before."""
    there = {info.base_name for info in out.list()}
    names = [shard.failed_name for shard in job.shards if shard.failed_name in there]
    return sum(out.child(name).read().count(b"\n") for name in names)
