"""Holds engines to a reference: runs both on the same texts and turns the differences into a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Protocol, cast

import msgspec
import numpy as np
import numpy.typing as npt

import bei
from bei.compiler.parity.compare import DISTANCE, Comparison, compare, compare_spans
from bei.compiler.parity.gate import Threshold, gate
from bei.compiler.parity.probes import probe
from bei.compiler.parity.reference import Reference, Span, TokenReference
from bei.compiler.parity.report import (
    EngineReport,
    Histogram,
    ParityReport,
    Point,
    ReferenceFacts,
    TextRow,
    TextsFacts,
    judge,
)
from bei.compiler.parity.texts import Sample, digest
from bei.errors import BeiError
from bei.manifest import HeadSpec, Limits
from bei.runtime.entities import STRATEGIES, Strategy
from bei.runtime.executor import Row

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

WORST = 20
PREVIEW = 120
"""Texts listed one by one, and characters shown of each."""
POINTS = 1000
FLOOR = 1e-16
"""Distances below count as this in the histogram: fp64 has no more to say."""


class Subject(Protocol):
    """One engine under test, with the bundle's tokenizer. ``device`` and ``versions`` go into the certificate."""

    @property
    def target(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def head(self) -> HeadSpec: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def device(self) -> str: ...

    @property
    def device_class(self) -> str | None: ...

    @property
    def versions(self) -> Mapping[str, str]: ...

    def rows(self, samples: Sequence[Sample]) -> list[Row]:
        """Tokenised as in serving: prompts, truncation, special tokens."""

    def run(self, rows: list[Row]) -> Sequence[F32]:
        """One engine call with exactly these rows; a result a row."""

    def outputs(self, samples: Sequence[Sample]) -> Sequence[F32]:
        """The way of a user's texts through the runtime, batching included; the head's output for each."""

    def spans(self, samples: Sequence[Sample], logits: Sequence[F32], strategy: Strategy) -> list[list[Span]]:
        """Token classification: the entities that the runtime makes of ``logits`` [n, C], one list a text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """The texts, and what the reference makes of them; ``source`` names the texts in the report."""

    source: str
    samples: tuple[Sample, ...]
    reference: Reference
    token_ids: list[list[int]]
    outputs: list[F32]


def expect(reference: Reference, samples: Sequence[Sample], source: str) -> Expected:
    """Run the reference, once for all engines."""
    return Expected(
        source=source,
        samples=tuple(samples),
        reference=reference,
        token_ids=reference.token_ids(samples),
        outputs=reference.outputs(samples),
    )


def check(
    subjects: Sequence[Subject],
    expected: Expected,
    *,
    model: str,
    revision: str | None = None,
    thresholds: Mapping[str, Threshold] | None = None,
) -> ParityReport:
    """Every engine against the reference; ``thresholds`` None are the defaults of `gate`."""
    return ParityReport(
        bei_version=bei.__version__,
        model=model,
        revision=revision,
        task=expected.reference.task,
        engines=tuple(check_engine(subject, expected, thresholds) for subject in subjects),
    )


def check_engine(
    subject: Subject, expected: Expected, thresholds: Mapping[str, Threshold] | None = None
) -> EngineReport:
    """One engine against the reference. An error of the engine is a failed verdict with its message as the reason."""
    limits = gate(expected.reference.task, subject.precision) if thresholds is None else thresholds
    report = EngineReport(
        target=subject.target,
        precision=subject.precision,
        verdict="failed",
        device=subject.device,
        device_class=subject.device_class,
        created=now(),
        versions={"bei": bei.__version__, **subject.versions},
        texts=_texts_facts(expected),
        reference=_reference_facts(expected.reference),
        distance=DISTANCE[expected.reference.task],
    )
    try:
        return _measured(report, subject, expected, limits)
    except BeiError as error:
        return msgspec.structs.replace(report, reason=str(error))


def not_run(target: str, precision: str, reason: str) -> EngineReport:
    """The entry of an engine that this machine cannot run."""
    return EngineReport(target=target, precision=precision, verdict="not run", reason=reason, created=now())


def now() -> str:
    """UTC to the second, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _measured(
    report: EngineReport, subject: Subject, expected: Expected, limits: Mapping[str, Threshold]
) -> EngineReport:
    rows = subject.rows(expected.samples)
    ours = subject.outputs(expected.samples)
    comparison = _compare(subject, expected, ours)
    probed = probe(expected.reference.task, rows, subject.run, subject.limits)
    values = {
        **comparison.values,
        "non_finite": (comparison.values["non_finite"] or 0) + probed.non_finite,
        "token_ids_differ": float(_ids_differ(rows, expected.token_ids)),
        "batch_difference": probed.batch_difference,
        "padding_difference": probed.padding_difference,
    }
    if expected.reference.task == "token-classify":
        values |= _spans(subject, expected, ours)
    measures, verdict = judge(values, limits)
    tokens = [int(row.ids.size) for row in rows]
    return msgspec.structs.replace(
        report,
        verdict=verdict,
        measures=measures,
        histogram=histogram(comparison.distance),
        points=points(tokens, comparison.distance),
        worst=worst_texts(expected.samples, tokens, comparison),
    )


def _compare(subject: Subject, expected: Expected, ours: Sequence[F32]) -> Comparison:
    return compare(
        expected.reference.task,
        ours,
        expected.outputs,
        expected.samples,
        multi_label=subject.head.problem_type == "multi_label_classification",
    )


def _spans(subject: Subject, expected: Expected, ours: Sequence[F32]) -> dict[str, float | None]:
    """Our logits through the runtime's rules beside the reference's through its own."""
    reference = cast(TokenReference, expected.reference)
    kept = [i for i, logits in enumerate(ours) if np.isfinite(logits).all()]
    samples = [expected.samples[i] for i in kept]

    def all_strategies(
        of: Subject | TokenReference, logits: Sequence[F32]
    ) -> dict[Strategy, list[list[Span]]]:
        return {strategy: of.spans(samples, logits, strategy) for strategy in STRATEGIES}

    return compare_spans(
        all_strategies(subject, [ours[i] for i in kept]),
        all_strategies(reference, [expected.outputs[i] for i in kept]),
    )


def _ids_differ(rows: Sequence[Row], token_ids: Sequence[Sequence[int]]) -> int:
    return sum(row.ids.tolist() != list(ids) for row, ids in zip(rows, token_ids, strict=True))


def histogram(distance: F64) -> Histogram | None:
    """Texts by half decades of distance; None when no distance is finite."""
    logs = np.log10(np.maximum(distance[np.isfinite(distance)], FLOOR))
    if not logs.size:
        return None
    low, high = np.floor(2 * logs.min()), np.floor(2 * logs.max()) + 1
    edges = np.arange(low, high + 1) / 2
    counts, _ = np.histogram(logs, edges)
    return Histogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


def points(tokens: Sequence[int], distance: F64) -> tuple[Point, ...]:
    """Length and distance of every text, the worst first; of very many texts the worst and an even selection."""
    order = [int(i) for i in np.argsort(-distance) if np.isfinite(distance[i])]
    step = -(-len(order) // POINTS) if order else 1
    kept = order if step == 1 else [*order[: POINTS // 10], *order[POINTS // 10 :: step]]
    return tuple(Point(tokens=tokens[i], distance=float(distance[i])) for i in kept)


def worst_texts(
    samples: Sequence[Sample], tokens: Sequence[int], comparison: Comparison
) -> tuple[TextRow, ...]:
    """Texts without a finite result, then those that are furthest off."""
    distance = np.where(np.isfinite(comparison.distance), comparison.distance, np.inf)
    order = np.argsort(-distance, kind="stable")[:WORST]
    return tuple(_text_row(int(i), samples[i], tokens[i], comparison) for i in order)


def _text_row(i: int, sample: Sample, tokens: int, comparison: Comparison) -> TextRow:
    distance, error = float(comparison.distance[i]), float(comparison.error[i])
    return TextRow(
        index=i,
        kind=sample.kind,
        text=_beginning(sample.text),
        pair=None if sample.pair is None else _beginning(sample.pair),
        prompt=sample.prompt,
        tokens=tokens,
        distance=distance if np.isfinite(distance) else None,
        error=error if np.isfinite(error) else None,
    )


def _beginning(text: str) -> str:
    return text if len(text) <= PREVIEW else text[:PREVIEW] + "…"


def _texts_facts(expected: Expected) -> TextsFacts:
    lengths = [len(ids) for ids in expected.token_ids]
    return TextsFacts(
        source=expected.source,
        sha256=digest(expected.samples),
        count=len(lengths),
        tokens=sum(lengths),
        longest=max(lengths),
    )


def _reference_facts(reference: Reference) -> ReferenceFacts:
    return ReferenceFacts(name=reference.name, device="cpu", versions=dict(reference.versions))
