"""One entry of the cache: a finished bundle as a tar, without the files that the checkpoint itself has.

The manifest comes first, so that whoever reads the stream knows the hash of every file before it arrives. Weights are
never stored: whoever asks has the checkpoint at hand, else there would be no key.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from bei.compiler.bundle import BundleWriter
from bei.errors import BundleError
from bei.manifest import MANIFEST_FILE, Manifest, Source, decode_manifest
from bei.runtime.bundle import is_inside

BLOCK = 1 << 20


class DamagedEntry(BundleError):
    """An entry of the cache is not what was put there."""


def pack(bundle: Path, manifest: Manifest, file: IO[bytes]) -> None:
    """Write the entry of the bundle in the folder ``bundle``."""
    with tarfile.open(fileobj=file, mode="w|", bufsize=BLOCK, format=tarfile.GNU_FORMAT) as archive:
        for name in (MANIFEST_FILE, *_stored(manifest)):
            member = tarfile.TarInfo(name)
            member.size = (bundle / name).stat().st_size
            with (bundle / name).open("rb") as content:
                archive.addfile(member, content)


def unpack(stream: IO[bytes], where: str, writer: BundleWriter, checkpoint: Path, source: Source) -> Manifest:
    """All files of the bundle through ``writer``, the checkpoint's own from its folder; the manifest is not written.

    Raises DamagedEntry for anything that is not as the manifest says.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK) as archive:
            members = iter(archive)
            manifest = decode_manifest(_content(archive, next(members, None)).read(), where)
            _check(manifest, source)
            _receive(archive, members, manifest, writer)
    except (tarfile.TarError, EOFError, BundleError) as error:
        raise DamagedEntry(f"{where}: damaged ({error}).") from None
    for name, original in _of_checkpoint(manifest).items():
        writer.copy(name, checkpoint / original, manifest.files[name])
    return manifest


def _receive(
    archive: tarfile.TarFile, members: Iterator[tarfile.TarInfo], manifest: Manifest, writer: BundleWriter
) -> None:
    missing = set(_stored(manifest))
    for member in members:
        if member.name not in missing:
            raise BundleError(f"{member.name} is not in its manifest")
        missing.remove(member.name)
        if writer.receive(member.name, _content(archive, member)) != manifest.files[member.name]:
            raise BundleError(f"the SHA-256 of {member.name} differs")
    if missing:
        raise BundleError(f"{min(missing)} is missing")


def _check(manifest: Manifest, source: Source) -> None:
    outside = [name for name in manifest.files if not is_inside(name)]
    if outside:
        raise BundleError(f"{outside[0]!r} lies outside the bundle")
    if manifest.source.files != source.files:
        raise BundleError("it was made from another checkpoint")


def _stored(manifest: Manifest) -> Iterator[str]:
    own = _of_checkpoint(manifest)
    return (name for name in manifest.files if name not in own)


def _of_checkpoint(manifest: Manifest) -> dict[str, str]:
    """Name in the bundle → name in the checkpoint, of the files that are byte for byte the checkpoint's."""
    originals = {record.sha256: name for name, record in manifest.source.files.items()}
    return {name: originals[r.sha256] for name, r in manifest.files.items() if r.sha256 in originals}


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo | None) -> IO[bytes]:
    found = None if member is None else archive.extractfile(member)
    if found is None:
        raise tarfile.ReadError("a file was expected")
    return found
