"""A bundle's engines against the checkpoint it was made from."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

import bei
from bei.compiler.bundle import hash_file
from bei.compiler.mapped import not_resident, regions, release_regions
from bei.compiler.parity.reference import Reference, hugging_face
from bei.compiler.parity.report import EngineReport, ParityReport, RangeRow
from bei.compiler.parity.run import Expected, check_engine, expect, not_run
from bei.compiler.parity.rungs import load_encoder, with_rung
from bei.compiler.parity.subject import bundle_engine, tokenize
from bei.compiler.parity.texts import Sample, builtin, require_fit
from bei.compiler.precision.policy import PLAIN, Policy, policy_of
from bei.compiler.progress import QUIET, Progress
from bei.errors import EngineError, ParityError
from bei.manifest import EngineRecord, Manifest, Task
from bei.runtime.bundle import Bundle
from bei.runtime.executors import registry
from bei.runtime.tokenizer import open_tokenizer

SOURCE_FOLDER = "source"
MakeReference = Callable[[Path, Task, int], Reference]
"""From the checkpoint's folder, the task and the longest input."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """What to try, and what to call it in the report."""

    source: str
    samples: tuple[Sample, ...]


def builtin_texts(manifest: Manifest, *, full: bool = False) -> Texts:
    """The built-in texts that fit a bundle: its task, its longest input, its prompts."""
    prompts = tuple(name for name, text in sorted(manifest.prompts.items()) if text)
    samples = builtin(manifest.head.task, manifest.limits.max_length, prompts=prompts, full=full)
    return Texts(source="built-in, full" if full else "built-in", samples=samples)


def default_reference(folder: Path, task: Task, max_length: int) -> Reference:
    """Hugging Face."""
    return hugging_face(folder, task, max_length=max_length)


def check_bundle(
    bundle: Bundle,
    checkpoint: Path,
    texts: Texts,
    *,
    targets: Sequence[str] = (),
    make_reference: MakeReference = default_reference,
    runner: registry.Backend = registry,
    progress: Progress = QUIET,
) -> ParityReport:
    """Measure ``targets``, by default every engine; one that cannot run here is listed as not run, and proven in torch.
    ``runner`` runs them.

    Raises ParityError for texts that do not fit the task or where there is no reference, and BundleError for a target
    the bundle does not have.
    """
    manifest = bundle.manifest
    require_fit(texts.samples, manifest.head.task, texts.source)
    records = [manifest.engine(target) for target in targets] or list(manifest.engines)
    weights = [checkpoint / name for name in manifest.source.files]
    before = regions(weights)
    with ExitStack() as stack:
        with progress.stage("reference", len(texts.samples), unit="items"):
            reference = make_reference(checkpoint, manifest.head.task, manifest.limits.max_length)
            stack.enter_context(not_resident(partial(release_regions, weights, regions(weights) - before)))
            expected = expect(reference, texts.samples, texts.source)
        engines = [_engine(bundle, checkpoint, record, expected, runner, progress) for record in records]
    return _report(manifest, engines)


def without_reference(bundle: Bundle, reason: str) -> ParityReport:
    """The report where nothing can be measured: no engine was run."""
    records = bundle.manifest.engines
    return _report(bundle.manifest, [not_run(r.target, r.precision, reason) for r in records])


def _report(manifest: Manifest, engines: Sequence[EngineReport]) -> ParityReport:
    return ParityReport(
        bei_version=bei.__version__,
        model=manifest.name,
        revision=manifest.source.revision,
        task=manifest.head.task,
        engines=tuple(_with_evidence(manifest, engine) for engine in engines),
        ranges=_ranges(policy_of(manifest)),
        decisions=tuple(policy_of(manifest).decisions()),
    )


def _with_evidence(manifest: Manifest, engine: EngineReport) -> EngineReport:
    record = manifest.engine(engine.target)
    return msgspec.structs.replace(engine, evidence=record.evidence, profiles=record.profiles)


def _ranges(policy: Policy) -> tuple[RangeRow, ...]:
    """The audit that FP16 engines were built on; ``after`` only where something was folded."""
    return tuple(
        RangeRow(site=site, before=value, after=policy.folded.get(site))
        for site, value in policy.ranges.items()
    )


@contextmanager
def checkpoint_of(bundle: Bundle) -> Iterator[Path]:
    """The checkpoint the bundle carries inside it, laid out as it came (a folder of links, removed afterwards)."""
    files = bundle.manifest.files
    with tempfile.TemporaryDirectory(prefix="bei-parity-") as folder:
        for name in bundle.manifest.source.files:
            stored = (
                name
                if name in files and f"{SOURCE_FOLDER}/{name}" not in files
                else f"{SOURCE_FOLDER}/{name}"
            )
            if stored not in files:
                raise ParityError(
                    f"{bundle.path}: the checkpoint's {name} is not in the bundle. Give --checkpoint FOLDER."
                )
            link = Path(folder, name)
            link.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(bundle.path / stored, link)
        yield Path(folder)


def require_source(folder: Path, manifest: Manifest, progress: Progress = QUIET) -> None:
    """Raises ParityError unless ``folder`` holds the very files the bundle was made from."""
    for name, record in manifest.source.files.items():
        path = folder / name
        if not path.is_file():
            raise ParityError(
                f"{folder}: {name} is missing; {manifest.name} was made from a checkpoint with it."
            )
        if path.stat().st_size != record.size or hash_file(path, progress).sha256 != record.sha256:
            raise ParityError(
                f"{folder}: {name} is not the file that {manifest.name} was made from (its SHA-256 differs). "
                "Give the same revision of the checkpoint."
            )


def _engine(
    bundle: Bundle,
    checkpoint: Path,
    record: EngineRecord,
    expected: Expected,
    runner: registry.Backend,
    progress: Progress,
) -> EngineReport:
    """The engine's report; where it did not pass, with the rung below, which says why or how far it is proven."""
    with progress.stage(record.target, len(expected.samples), unit="items"):
        report = _measure(bundle, record, expected, runner)
        if report.verdict == "passed":
            return report
        policy = PLAIN if record.precision == "fp32" else policy_of(bundle.manifest)
        encoder = load_encoder(checkpoint, record.precision, policy, expected.reference.task)
        rows = tokenize(bundle.manifest, open_tokenizer(bundle), expected.samples)
        return _judged(with_rung(report, record, encoder, rows, expected))


def _judged(report: EngineReport) -> EngineReport:
    """An engine that cannot run here, but whose precision already fails in torch, has failed."""
    if report.verdict != "not run" or all(rung.verdict == "passed" for rung in report.rungs):
        return report
    reason = f"{report.reason}; its precision fails in torch already (see the rung)"
    return msgspec.structs.replace(report, verdict="failed", reason=reason)


def _measure(
    bundle: Bundle, record: EngineRecord, expected: Expected, runner: registry.Backend
) -> EngineReport:
    reason = runner.available(record)
    if reason is not None:
        return not_run(record.target, record.precision, f"built, not executed: {reason}")
    try:
        with bundle_engine(bundle, record, runner) as engine:
            return check_engine(engine, expected)
    except EngineError as error:  # it should run here, but cannot be loaded
        return msgspec.structs.replace(not_run(record.target, record.precision, str(error)), verdict="failed")
