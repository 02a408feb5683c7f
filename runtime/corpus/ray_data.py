"""The same job on a Ray cluster: a Ray Data pipeline over actors that each hold the bundle and write whole shards.

Every node needs bei, the bundle, the inputs and the output folder at the same path or URI. A shard is bounded in rows and
in bytes of text, and an actor is given at most two, so that is all that waits in front of an engine. When an actor or
its node dies, Ray gives its shards to another one; writing a shard twice gives the same file.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from bei.errors import BeiError, EngineError, InputError
from bei.runtime.corpus.job import Job, read_job
from bei.runtime.corpus.prepare import Asked, Cut, sample_ranges
from bei.runtime.corpus.run import LoadOptions, Machine
from bei.runtime.corpus.shards import Shard, ShardReader
from bei.runtime.corpus.storage import Place, locate
from bei.runtime.corpus.worker import Advance, Done, Worker
from bei.runtime.model import Model, load
from bei.runtime.quantize import Ranges
from bei.runtime.ray_cluster import connected

SHARDS_AN_ACTOR = 2
"""One in work, one that waits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RayOptions:
    """``address`` as `connected` takes it. ``actors`` None: as many as there is room for; ``gpus`` of one actor (its CPUs
    are the threads asked for, at least one)."""

    address: str | None = None
    actors: int | None = None
    gpus: float = 0.0


class Cluster:
    """A Ray cluster that this process is connected to."""

    def __init__(
        self, bundle: str, load_options: LoadOptions, options: RayOptions, target: str | None
    ) -> None:
        self._bundle = bundle
        self._load_options = load_options
        self._options = options
        self._target = target
        self.tokens: int | None = None

    def probe(self, asked: Asked, found: Cut) -> tuple[str, Ranges | None]:
        import ray

        task = ray.remote(**self._resources())(_probe)
        answer = ray.get(task.remote(self._bundle, self._load_options, self._target, asked, found))
        if isinstance(answer, str):
            raise EngineError(answer)
        target, ranges = answer
        self._target = target
        return target, ranges

    def run(self, job: Job, out: Place, shards: Sequence[Shard], advance: Advance) -> Iterator[Done]:
        import ray.data

        self.tokens = 0
        work = ray.data.from_items(
            [{"shard": shard.index} for shard in shards], override_num_blocks=len(shards)
        )
        done = work.map_batches(
            ShardActor,
            fn_constructor_args=(self._bundle, self._load_options, job.target, out.uri),
            batch_size=1,
            compute=self._actors(len(shards)),
            **self._resources(),
        )
        for row in done.iter_batches(batch_size=1, prefetch_batches=0):
            answer = msgspec.json.decode(row["answer"][0], type=Answer)
            if answer.error is not None:
                raise EngineError(answer.error)
            assert answer.done is not None
            self.tokens += answer.tokens
            advance(answer.done.rows)
            yield answer.done

    def _actors(self, shards: int) -> Any:
        import ray.data

        at_most = min(self._options.actors or shards, shards)
        return ray.data.ActorPoolStrategy(
            min_size=min(self._options.actors or 1, shards),
            max_size=at_most,
            max_tasks_in_flight_per_actor=SHARDS_AN_ACTOR,
        )

    def _resources(self) -> dict[str, Any]:
        return {"num_cpus": self._load_options.threads or 1, "num_gpus": self._options.gpus}


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What an actor says of one shard; ``error`` where it could not do it."""

    done: Done | None = None
    tokens: int = 0
    error: str | None = None


class ShardActor:
    """Holds a loaded bundle and does shards of the job in ``out``."""

    def __init__(self, bundle: str, options: LoadOptions, target: str, out: str) -> None:
        try:
            self._prepare(bundle, options, target, locate(out))
            self._error = None
        except (
            BeiError
        ) as error:  # told with the first shard: a constructor that fails is tried again and again
            self._error = str(error)

    def _prepare(self, bundle: str, options: LoadOptions, target: str, out: Place) -> None:
        job = read_job(out)
        if job is None:
            raise InputError(
                f"{out.uri}: holds no job as seen from {os.uname().nodename}. Use a shared folder or a URI."
            )
        self._model = _loaded(bundle, options, target)
        if self._model.manifest.digest != job.bundle:
            raise InputError(
                f"{bundle}: is another bundle on {os.uname().nodename}. Copy the same to every node."
            )
        self._shards = job.shards
        self._reader = ShardReader(job.inputs, job.options.wanted, job.ids)
        self._worker = Worker(self._model, job, out)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"answer": [msgspec.json.encode(self._answer(int(index))) for index in batch["shard"]]}

    def _answer(self, index: int) -> Answer:
        if self._error is not None:
            return Answer(error=self._error)
        before = self._model.executor.tokens
        shard = self._shards[index]
        try:
            done = self._worker.run(shard, self._reader.read(shard))
        except BeiError as error:
            return Answer(error=str(error))
        return Answer(done=done, tokens=self._model.executor.tokens - before)


@contextmanager
def cluster(
    bundle: str, load_options: LoadOptions, options: RayOptions, target: str | None
) -> Iterator[Machine]:
    """A cluster to work on, left at the end. Raises InputError."""
    with connected(options.address):
        _quiet()
        yield Cluster(os.path.abspath(bundle), load_options, options, target)


def _probe(
    bundle: str, options: LoadOptions, target: str | None, asked: Asked, found: Cut
) -> tuple[str, Ranges | None] | str:
    """On some node: the engine that runs there, and the int8 ranges; an expected error as its message."""
    try:
        with _loaded(bundle, options, target) as model:
            return model.target, sample_ranges(asked, found, model)
    except BeiError as error:
        return str(error)


def _loaded(bundle: str, options: LoadOptions, target: str | None) -> Model:
    return load(
        bundle, target=target, threads=options.threads or 1, allow_unverified=options.allow_unverified
    )


def _quiet() -> None:
    """Ray Data's own bars and notes give way to ours."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
