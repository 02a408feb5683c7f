"""The run-time guard: rows that an engine turned into NaN or infinity are run again on the bundle's fp32 engine."""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bei.errors import BundleError, EngineError
from bei.manifest import EngineRecord, Manifest
from bei.runtime.batching import Budget, budget_for, plan
from bei.runtime.bundle import choose_engine
from bei.runtime.executor import Executor, Guarded, Output, Row
from bei.runtime.executors import registry
from bei.runtime.outputs import not_finite


@dataclass(frozen=True, kw_only=True, slots=True)
class Spare:
    """An fp32 engine of the bundle, not yet started."""

    target: str
    budget: Budget
    start: Callable[[], Executor]


@dataclass(slots=True)
class RescueCounts:
    """Rows since the start: ``non_finite`` as the engine gave them, and those of them that were ``rescued``."""

    non_finite: int = 0
    rescued: int = 0


class Rescue:
    """Safe to use from several threads.

    The spare engine is as large as the model and seldom needed, since the other passed parity: it is started when the
    first row needs it, which waits for that, and stays.
    """

    def __init__(self, spare: Spare | None = None) -> None:
        """Without a ``spare`` every row is an error."""
        self.counts = RescueCounts()
        self.spare = spare
        self._engine: Guarded | None = None
        self._lock = threading.Lock()

    def outputs(self, rows: Mapping[int, Row]) -> dict[int, Output]:
        """Finite outputs of ``rows``, of which the engine gave none. Raises EngineError naming rows by their keys."""
        if not rows:
            return {}
        with self._lock:
            self.counts.non_finite += len(rows)
        if self.spare is None:
            raise not_finite(list(rows))
        try:
            found = dict(self._run(rows, self.spare))
        except EngineError as error:
            raise not_finite(list(rows), f"the fp32 engine could not run them: {error}") from error
        with self._lock:
            self.counts.rescued += len(found)
        if len(found) < len(rows):
            lost = [key for key in rows if key not in found]
            raise not_finite(lost, f"{self.spare.target} in fp32 gives no number either")
        return found

    def close(self) -> None:
        """Release the engine; every row is an error from now on."""
        with self._lock:
            self.spare, engine, self._engine = None, self._engine, None
        if engine is not None:
            engine.close()

    def _run(self, rows: Mapping[int, Row], spare: Spare) -> Iterator[tuple[int, Output]]:
        """Keys and outputs of the rows that come out finite."""
        engine = self._started(spare)
        keys = list(rows)
        for batch in plan([len(row.ids) for row in rows.values()], spare.budget):
            for i, output in zip(batch, engine.run([rows[keys[i]] for i in batch]), strict=True):
                if np.isfinite(output).all():
                    yield keys[i], output

    def _started(self, spare: Spare) -> Guarded:
        with self._lock:
            if self._engine is None:
                self._engine = Guarded(spare.start())
            return self._engine


def spare_engine(
    manifest: Manifest,
    running: EngineRecord,
    start: Callable[[EngineRecord], Executor],
    *,
    allow_unverified: bool = False,
) -> Spare | None:
    """The first fp32 engine of the fallback chain, other than the one ``running``, that this machine runs; or None."""

    def unfit(record: EngineRecord) -> str | None:
        fp32 = record.precision == "fp32" and record.target != running.target
        return registry.available(record) if fp32 else "no fp32 engine to fall back on"

    try:
        record = choose_engine(manifest, allow_unverified=allow_unverified, available=unfit).record
    except BundleError:
        return None
    return Spare(
        target=record.target, budget=budget_for(record, manifest.limits), start=lambda: start(record)
    )
