"""What a parity run found, as data: the bundle's ``parity.json``. The terminal table and the HTML page show only this."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from bei.compiler.parity.gate import MEANINGS, Threshold
from bei.compiler.parity.layers import Drift
from bei.errors import ParityError
from bei.manifest import Profile, Task, Verdict

REPORT_VERSION = 1
FP16_MAX = 65504.0


class _Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Immutable, and strict when decoded."""


class Measure(_Data, frozen=True, kw_only=True):
    """``value`` None: there was nothing to measure. ``passed`` None: no threshold, or nothing to measure."""

    name: str
    value: float | None
    threshold: Threshold | None
    passed: bool | None

    @property
    def meaning(self) -> str:
        """In words."""
        return MEANINGS.get(self.name, self.name)


class TextRow(_Data, frozen=True, kw_only=True):
    """One input, by its place in the set; ``tokens`` as the engine saw it. ``distance`` and ``error`` (largest absolute
    difference) are None where the engine's result was not finite. The texts are cut to their beginnings."""

    index: int
    kind: str
    text: str
    pair: str | None
    prompt: str | None
    tokens: int
    distance: float | None
    error: float | None


class Histogram(_Data, frozen=True, kw_only=True):
    """Texts by log10 of their distance: ``counts[i]`` of them between ``edges[i]`` and ``edges[i + 1]``."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Point(_Data, frozen=True, kw_only=True):
    """A text's tokens and distance."""

    tokens: int
    distance: float


class TextsFacts(_Data, frozen=True, kw_only=True):
    """Which texts: ``source`` is "built-in", "built-in, full" or the user's file name; SHA-256 over all of them."""

    source: str
    sha256: str
    count: int
    tokens: int
    longest: int


class ReferenceFacts(_Data, frozen=True, kw_only=True):
    """What the engine was held to, and where it ran."""

    name: str
    device: str
    versions: dict[str, str]


class Rung(_Data, frozen=True, kw_only=True):
    """One step of the proof below the engine itself, such as the graph under ONNX Runtime against torch."""

    name: str
    verdict: Verdict
    measures: tuple[Measure, ...] = ()


class EngineReport(_Data, frozen=True, kw_only=True):
    """One engine, with the circumstances of its run. An engine that did not run has a ``reason`` and no measures; so
    has one that failed with an error. ``device_class`` is "cpu" or such as "sm89"; ``created`` is UTC, ISO 8601. ``evidence`` and ``profiles`` are the manifest's: how
    it was built."""

    target: str
    precision: str
    verdict: Verdict
    reason: str | None = None
    device: str | None = None
    device_class: str | None = None
    created: str
    versions: dict[str, str] = {}
    texts: TextsFacts | None = None
    reference: ReferenceFacts | None = None
    measures: tuple[Measure, ...] = ()
    distance: str | None = None
    histogram: Histogram | None = None
    points: tuple[Point, ...] = ()
    worst: tuple[TextRow, ...] = ()
    rungs: tuple[Rung, ...] = ()
    drift: Drift | None = None
    evidence: dict[str, Any] = {}
    profiles: tuple[Profile, ...] = ()

    def value(self, name: str) -> float | None:
        """A measure's value, None when it was not measured."""
        return next((measure.value for measure in self.measures if measure.name == name), None)


class RangeRow(_Data, frozen=True, kw_only=True):
    """Largest magnitude of one site over the calibration texts, before and after range folding."""

    site: str
    before: float
    after: float | None = None


class ParityReport(_Data, frozen=True, kw_only=True):
    """Every engine of one bundle. ``revision`` is a commit hash, or None for a local folder. ``decisions``: in words, the
    scales and wider units of the precision policy that follow from ``ranges``."""

    report_version: int = REPORT_VERSION
    bei_version: str
    model: str
    revision: str | None
    task: Task
    engines: tuple[EngineReport, ...]
    ranges: tuple[RangeRow, ...] = ()
    decisions: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """failed if any engine failed, passed if at least one ran, else not run."""
        verdicts = {engine.verdict for engine in self.engines}
        order: tuple[Literal["failed", "passed"], ...] = ("failed", "passed")
        return next((verdict for verdict in order if verdict in verdicts), "not run")

    def merged_into(self, older: "ParityReport") -> "ParityReport":
        """This report, with those engines of the older one that did not run this time, in the older one's order."""
        had = {engine.target: engine for engine in older.engines}
        mine = {e.target: e for e in self.engines if e.verdict != "not run" or e.target not in had}
        kept = tuple(mine.pop(engine.target, engine) for engine in older.engines)
        audited = self if self.ranges else older
        return msgspec.structs.replace(
            self, engines=(*kept, *mine.values()), ranges=audited.ranges, decisions=audited.decisions
        )


def judge(
    values: Mapping[str, float | None], thresholds: Mapping[str, Threshold]
) -> tuple[tuple[Measure, ...], Verdict]:
    """Measures with a threshold first. Passed: every threshold that met a value holds, and at least one did.

    Raises ParityError for a threshold on a measure that does not exist.
    """
    if unknown := sorted(set(thresholds) - set(MEANINGS)):
        raise ParityError(f"parity: no measure named {unknown[0]!r}. Known: {', '.join(sorted(MEANINGS))}.")
    names = [
        *(name for name in thresholds if name in values),
        *(name for name in values if name not in thresholds),
    ]
    measures = tuple(_measure(name, values[name], thresholds.get(name)) for name in names)
    outcomes = [measure.passed for measure in measures if measure.passed is not None]
    return measures, "passed" if outcomes and all(outcomes) else "failed"


def _measure(name: str, value: float | None, threshold: Threshold | None) -> Measure:
    passed = None if threshold is None or value is None else threshold.holds(value)
    return Measure(name=name, value=value, threshold=threshold, passed=passed)


def encode_report(report: ParityReport) -> bytes:
    """Indented JSON, UTF-8."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def decode_report(data: bytes, where: str) -> ParityReport:
    """Raises ParityError naming the file ``where``."""
    try:
        report = msgspec.json.decode(data, type=ParityReport)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ParityError(f"{where}: not a parity report ({error}). Run bei-parity again.") from None
    if report.report_version != REPORT_VERSION:
        raise ParityError(
            f"{where}: report version {report.report_version}, but this bei reads {REPORT_VERSION}. "
            "Run bei-parity again."
        )
    return report
