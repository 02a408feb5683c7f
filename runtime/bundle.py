"""Open a bundle: read the manifest, check every file against it, choose the engine this machine runs.

The runtime opens no file that the manifest does not list, so unlisted files are harmless and ignored.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bei.errors import BundleError
from bei.gpu import device_class
from bei.manifest import MANIFEST_FILE, EngineRecord, FileRecord, Manifest, decode_manifest
from bei.runtime.executors import registry

MAX_MANIFEST_BYTES = 64 << 20
CHUNK = 1 << 20
SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A bundle's folder (absolute, links resolved) and its manifest."""

    path: Path
    manifest: Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """An engine that is not used, and why."""

    target: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The engine to run and those passed over before it, in fallback order."""

    record: EngineRecord
    skipped: tuple[Skipped, ...] = ()


def open_bundle(path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
    """The bundle at ``path``, every file's size and (with ``verify``) SHA-256 checked. Raises BundleError."""
    bundle = read_bundle(path)
    if verify:
        verify_files(bundle, bundle.manifest.files)
    return bundle


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """The bundle with its manifest verified and its files present in the right size, contents not yet hashed."""
    given = Path(path)
    if not given.is_dir():
        what = "not a folder" if given.exists() else "no such folder"
        raise BundleError(f"{given}: {what}. A bundle is the folder that bei-compile writes.")
    folder = given.resolve()
    manifest = read_manifest(folder)
    bundle = Bundle(path=folder, manifest=manifest)
    _check_references(bundle)
    _refuse(bundle, [_structure_problem(folder, name, record) for name, record in manifest.files.items()])
    return bundle


def verify_files(bundle: Bundle, names: Collection[str]) -> None:
    """Hash the named files, small ones first, several at a time (SHA-256 runs without the GIL)."""
    records = bundle.manifest.files
    ordered = sorted(names, key=lambda name: records[name].size)
    workers = max(1, min(4, os.cpu_count() or 1, len(ordered)))
    with ThreadPoolExecutor(workers, "bei-verify") as pool:
        problems = pool.map(lambda name: _content_problem(bundle.path, name, records[name]), ordered)
        _refuse(bundle, problems)


def unlisted_files(bundle: Bundle) -> list[str]:
    """Files in the folder that the manifest does not name; nothing reads them."""
    known = {MANIFEST_FILE, *bundle.manifest.files}
    found = (
        entry.relative_to(bundle.path).as_posix() for entry in bundle.path.rglob("*") if not entry.is_dir()
    )
    return sorted(name for name in found if name not in known)


def choose_engine(
    manifest: Manifest,
    *,
    target: str | None = None,
    allow_unverified: bool = False,
    device: int = 0,
    available: Callable[[EngineRecord], str | None] = registry.available,
) -> Choice:
    """The first engine of the fallback chain (or ``target``) that this machine runs and that passed parity on
    devices such as GPU ``device``.

    ``available`` says why an engine cannot run here, None when it can. Raises BundleError with every reason.
    """
    chain = [target] if target is not None else list(manifest.fallback)
    skipped: list[Skipped] = []
    for name in chain:
        record = manifest.engine(name)
        reason = (None if allow_unverified else unproven(manifest, record, device)) or available(record)
        if reason is None:
            return Choice(record=record, skipped=tuple(skipped))
        skipped.append(Skipped(target=name, reason=reason))
    reasons = (
        "".join(f"\n  {skip.target}: {skip.reason}" for skip in skipped) or "\n  the fallback chain is empty"
    )
    raise BundleError(f"{manifest.name}: no engine of this bundle can be used here.{reasons}")


def unproven(manifest: Manifest, record: EngineRecord, device: int = 0) -> str | None:
    """Why the engine is not certified for what it would run on here; None when it is, or there is no such device."""
    verdict = manifest.parity.verdicts.get(record.target, "not run")
    if verdict != "passed":
        return f"parity verdict is {verdict!r}, need 'passed'. Run bei-parity, or pass --allow-unverified."
    here, passed_on = device_class(record.device, device), manifest.parity.classes.get(record.target, ())
    if record.device == "cpu" or here is None or here in passed_on:
        return None
    proven = ", ".join(passed_on) or "no GPU on record"
    return f"it passed parity on {proven}, this is {here}. Run bei-parity here, or pass --allow-unverified."


def read_manifest(folder: Path) -> Manifest:
    """A bundle's manifest alone, no file of it checked. Raises BundleError."""
    file = folder / MANIFEST_FILE
    try:
        mode = file.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise BundleError(f"{file}: not a regular file. Rebuild the bundle with bei-compile.")
        with file.open("rb") as stream:
            data = stream.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        raise BundleError(
            f"{folder}: no {MANIFEST_FILE}, so this is no bundle. Build one with bei-compile."
        ) from None
    except OSError as error:
        raise BundleError(f"{file}: cannot be read ({error.strerror}).") from None
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{file}: larger than {MAX_MANIFEST_BYTES >> 20} MiB. Rebuild the bundle with bei-compile."
        )
    try:
        return decode_manifest(data, str(file))
    except RecursionError:
        raise BundleError(f"{file}: nested too deeply. Rebuild the bundle with bei-compile.") from None


def _check_references(bundle: Bundle) -> None:
    """Everything the runtime will open is listed, by a name that stays inside the folder."""
    manifest = bundle.manifest
    bad = [name for name in manifest.files if not is_inside(name)]
    if bad:
        raise BundleError(
            f"{bundle.path}: file names that leave the bundle: {_list(bad)}. Do not use this bundle."
        )
    targets = [record.target for record in manifest.engines]
    used = [manifest.tokenizer.file, *(record.path for record in manifest.engines)]
    if manifest.parity.file is not None:
        used.append(manifest.parity.file)
    problems = [f"{name} is used but not listed" for name in used if name not in manifest.files]
    problems += [
        f"the fallback names no engine {name!r}" for name in manifest.fallback if name not in targets
    ]
    if len(set(targets)) < len(targets):
        problems.append("two engines share one target")
    _refuse(bundle, problems)


def is_inside(name: str) -> bool:
    """Whether a file of that name lies in the bundle and is not its manifest."""
    path = PurePosixPath(name)
    plain = not path.is_absolute() and ".." not in path.parts and path.as_posix() == name
    return plain and name not in ("", ".", MANIFEST_FILE) and not set(name) & {"\\", "\0", ":"}


def _structure_problem(folder: Path, name: str, record: FileRecord) -> str | None:
    """Missing, a link, not a file, or of the wrong size."""
    at = folder
    try:
        for part in PurePosixPath(name).parts:
            at /= part
            info = at.lstat()
            if stat.S_ISLNK(info.st_mode):
                return f"{name} is a symbolic link"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    if not stat.S_ISREG(info.st_mode):
        return f"{name} is not a regular file"
    if info.st_size != record.size:
        return f"{name} has {info.st_size} bytes, need {record.size}"
    return None


def _content_problem(folder: Path, name: str, record: FileRecord) -> str | None:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(min(CHUNK, max(1, record.size))))
    try:
        with (folder / name).open("rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                digest.update(buffer[:count])
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return None if digest.hexdigest() == record.sha256 else f"{name} has changed (its SHA-256 differs)"


def _refuse(bundle: Bundle, problems: Iterable[str | None]) -> None:
    found = [problem for problem in problems if problem]
    if found:
        raise BundleError(
            f"{bundle.path}: damaged: {_list(found)}. Copy it again or rebuild it with bei-compile."
        )


def _list(items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return "; ".join(items[:SHOWN]) + more
