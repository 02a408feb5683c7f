"""A folder or bucket of finished bundles, each under its key: ``<key>.tar``.

An entry is one object, written whole or not at all, so of two writers of one key one good entry remains. What comes out
is held to its hashes: an entry that is damaged is built again and replaced, with a warning, never served. A cache that
cannot be reached costs a warning and a build, not the bundle.
"""

import contextlib
import mmap
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from bei.compiler.build import Certify, compile_checkpoint
from bei.compiler.bundle import BundleWriter, writing
from bei.compiler.cache.entry import DamagedEntry, pack, unpack
from bei.compiler.cache.request import Request
from bei.compiler.progress import QUIET, Progress
from bei.errors import InputError
from bei.manifest import Manifest
from bei.runtime.bundle import read_bundle

if TYPE_CHECKING:
    from bei.runtime.corpus.storage import Place

ABANDONED = timedelta(days=1)
"""A partial entry that nobody has added to for so long belongs to a writer that was killed."""

Warn = Callable[[str], None]
"""Told what the user should know, and the build goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """A bundle, built or ``cached``."""

    out: Path
    manifest: Manifest
    cached: bool


def compile_request(
    request: Request,
    cache: "Cache | None",
    *,
    progress: Progress = QUIET,
    certify: Certify | None = None,
    warn: Warn,
) -> Compiled:
    """What was asked for, from the cache or else built, and then kept there. Raises BeiError."""
    manifest = None if cache is None else cache.restore(request, warn)
    if manifest is not None:
        return Compiled(out=request.out, manifest=manifest, cached=True)
    out, manifest = compile_checkpoint(
        request.checkpoint, request.options, source=request.source, progress=progress, certify=certify
    )
    if cache is not None:
        cache.keep(request, manifest, warn)
    return Compiled(out=out, manifest=manifest, cached=False)


def open_cache(uri: str) -> "Cache":
    """The cache in a folder or at a URI, created where it is missing. Raises InputError."""
    if find_spec("pyarrow") is None:
        raise InputError("--cache: needs pyarrow, which is not installed. Run: pip install 'bei[embed]'.")
    from bei.runtime.corpus.storage import locate, make_folder

    place = locate(uri)
    make_folder(place)
    return Cache(place=place)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cache:
    """Where entries lie."""

    place: "Place"

    def restore(self, request: Request, warn: Warn) -> Manifest | None:
        """Put the request's bundle where it belongs; None where the cache has no good entry of it."""
        from pyarrow.fs import FileType

        from bei.runtime.corpus.storage import reading

        entry = self.place.child(_name(request))
        try:
            if entry.info().type == FileType.NotFound:
                return None
            with (
                reading(entry),
                entry.filesystem.open_input_stream(entry.path, compression=None) as stream,
                writing(request.out) as writer,
            ):
                manifest = unpack(stream, entry.uri, writer, request.checkpoint.folder, request.source)
                return _finished(manifest, request, writer)
        except DamagedEntry as error:
            warn(f"{error} It is built again.")
        except InputError as error:
            warn(f"cache: {error}")
        return None

    def keep(self, request: Request, manifest: Manifest, warn: Warn) -> None:
        """Add the finished bundle of the request; one that failed its gate is not kept."""
        from bei.runtime.corpus.storage import remove_partial, write

        if "failed" in manifest.parity.verdicts.values():
            return
        try:
            with tempfile.TemporaryFile(dir=request.out.absolute().parent) as file:
                pack(request.out, manifest, file)
                file.flush()
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    write(self.place, _name(request), data)
        except (OSError, InputError) as error:
            warn(f"cache: not kept: {error}")
        with contextlib.suppress(OSError, InputError):  # whoever may not remove files leaves them to others
            remove_partial(self.place, unchanged=ABANDONED)


def _name(request: Request) -> str:
    return f"{request.key}.tar"


def _finished(manifest: Manifest, request: Request, writer: BundleWriter) -> Manifest:
    """The manifest written, with the name and the source of the one who asks."""
    named = msgspec.structs.replace(manifest, name=request.name, source=request.source)
    if named.parity.file is not None and _title(named) != _title(manifest):
        _retitle(named, writer)
    files = {name: writer.files[name] for name in manifest.files}
    writer.finish(msgspec.structs.replace(named, files=files))
    return read_bundle(writer.folder).manifest


def _title(manifest: Manifest) -> tuple[str, str | None]:
    return manifest.name, manifest.source.revision


def _retitle(manifest: Manifest, writer: BundleWriter) -> None:
    """The certificate under another name: the measurements are of the same bytes."""
    from bei.compiler.parity.certificate import PAGE_FILE, REPORT_FILE
    from bei.compiler.parity.html import render
    from bei.compiler.parity.report import decode_report, encode_report

    report = decode_report((writer.folder / REPORT_FILE).read_bytes(), REPORT_FILE)
    report = msgspec.structs.replace(report, model=manifest.name, revision=manifest.source.revision)
    writer.write(REPORT_FILE, encode_report(report))
    writer.write(PAGE_FILE, render(report).encode())
