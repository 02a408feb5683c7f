"""The bundle's certificate: ``parity.json`` and ``parity.html``, and the verdicts in its manifest."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from bei.compiler.parity.bundles import builtin_texts, check_bundle, without_reference
from bei.compiler.parity.html import render
from bei.compiler.parity.report import EngineReport, ParityReport, decode_report, encode_report
from bei.compiler.progress import QUIET, Progress
from bei.errors import BundleError, ParityError
from bei.manifest import (
    MANIFEST_FILE,
    EngineRecord,
    FileRecord,
    Manifest,
    ParityRecord,
    Verdict,
    encode_manifest,
)
from bei.runtime.bundle import read_bundle, read_manifest

REPORT_FILE = "parity.json"
PAGE_FILE = "parity.html"
NEEDS = ("torch", "transformers", "sentence_transformers")


def certify(bundle: Path, report: ParityReport) -> Manifest:
    """Put ``report`` into the bundle at ``bundle``: other engines' earlier reports stay, the manifest gets the verdicts.

    The manifest is replaced last, so whoever reads in between sees a certificate that does not fit and refuses it;
    `discard_damaged` mends what a crash there leaves. Raises BundleError.
    """
    manifest = read_bundle(bundle).manifest
    earlier = _earlier(bundle, manifest)
    whole = report if earlier is None else report.merged_into(earlier)
    pages = {REPORT_FILE: encode_report(whole), PAGE_FILE: render(whole).encode()}
    updated = _updated(manifest, whole, pages)
    _replace_files(bundle, {**pages, MANIFEST_FILE: encode_manifest(updated)})
    return read_bundle(bundle).manifest


def discard_damaged(bundle: Path) -> bool:
    """Drop a certificate whose files are not those the manifest lists; every verdict is then "not run". True if so."""
    manifest = read_manifest(bundle)
    listed = {name: manifest.files[name] for name in (REPORT_FILE, PAGE_FILE) if name in manifest.files}
    if all(_intact(bundle / name, record) for name, record in listed.items()):
        return False
    files = {name: record for name, record in manifest.files.items() if name not in listed}
    verdicts: dict[str, Verdict] = {engine.target: "not run" for engine in manifest.engines}
    bare = msgspec.structs.replace(manifest, files=files, parity=ParityRecord(file=None, verdicts=verdicts))
    _replace_files(bundle, {MANIFEST_FILE: encode_manifest(bare)})
    return True


def certifier(progress: Progress = QUIET) -> Callable[[Path, Path], Manifest]:
    """For bei-compile: measure a finished bundle (folder) against its checkpoint (folder) and certify it.

    Engines that cannot run here, or all where the checkpoint has no reference, are recorded as not run, with the reason.
    Raises ParityError at once when the parity extra is not installed.
    """
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise ParityError(
            f"parity: {missing[0]} is not installed. Run: pip install 'bei[parity]', or pass --no-parity."
        )

    def measure(folder: Path, checkpoint: Path) -> Manifest:
        bundle = read_bundle(folder)
        texts = builtin_texts(bundle.manifest)
        try:
            report = check_bundle(bundle, checkpoint, texts, progress=progress)
        except ParityError as error:
            report = without_reference(bundle, str(error))
        return certify(folder, report)

    return measure


def _updated(manifest: Manifest, report: ParityReport, pages: Mapping[str, bytes]) -> Manifest:
    """The manifest with the report's verdicts, files and engine states."""
    records = {
        name: FileRecord(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        for name, data in pages.items()
    }
    by_target = {engine.target: engine for engine in report.engines}
    verdicts: dict[str, Verdict] = {
        record.target: by_target[record.target].verdict if record.target in by_target else "not run"
        for record in manifest.engines
    }
    summary = {target: _summary(by_target[target]) for target in verdicts if target in by_target}
    return msgspec.structs.replace(
        manifest,
        engines=tuple(_with_status(record, verdicts[record.target]) for record in manifest.engines),
        parity=ParityRecord(
            file=REPORT_FILE, verdicts=verdicts, classes=_classes(manifest.parity, report), summary=summary
        ),
        files={**manifest.files, **records},
    )


def _classes(earlier: ParityRecord, report: ParityReport) -> dict[str, tuple[str, ...]]:
    """Where each engine has passed: what is known so far, corrected by where it ran now."""
    found = {target: set(names) for target, names in earlier.classes.items()}
    for engine in report.engines:
        if engine.device_class is not None:
            names = found.setdefault(engine.target, set())
            (names.add if engine.verdict == "passed" else names.discard)(engine.device_class)
    return {target: tuple(sorted(names)) for target, names in found.items() if names}


def _with_status(record: EngineRecord, verdict: Verdict) -> EngineRecord:
    return record if verdict == "not run" else msgspec.structs.replace(record, status="executed")


def _summary(engine: EngineReport) -> dict[str, Any]:
    """What bei-inspect shows without opening the report: the values that a threshold judged."""
    judged = {measure.name: measure.value for measure in engine.measures if measure.threshold is not None}
    facts = {"device": engine.device, "reason": engine.reason, "created": engine.created}
    texts = None if engine.texts is None else {"source": engine.texts.source, "count": engine.texts.count}
    return {**facts, "texts": texts, "measures": judged}


def _earlier(bundle: Path, manifest: Manifest) -> ParityReport | None:
    """The certificate so far; one that another version wrote cannot be continued, only replaced."""
    if manifest.parity.file is None:
        return None
    path = bundle / manifest.parity.file
    try:
        return decode_report(path.read_bytes(), str(path))
    except ParityError:
        return None


def _intact(path: Path, record: FileRecord) -> bool:
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(data).hexdigest() == record.sha256


def _replace_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write all beside their places first, then rename them in order: a full disk changes nothing."""
    ready: list[tuple[str, Path]] = []
    try:
        for name, data in files.items():
            with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{name}.", delete=False) as file:
                ready.append((file.name, folder / name))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
        for temporary, path in ready:
            os.replace(temporary, path)
    except OSError as error:
        raise BundleError(f"{folder}: the certificate cannot be written ({error.strerror}).") from None
    finally:
        for temporary, _ in ready:
            Path(temporary).unlink(missing_ok=True)
