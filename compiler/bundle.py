"""Write a bundle all at once or not at all.

Everything goes to a hidden folder beside the destination and is renamed when it is complete, so a killed build never
leaves half a bundle. The next build of the same bundle removes what a killed one left.
"""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from bei.compiler.progress import QUIET, Progress
from bei.errors import BundleError
from bei.manifest import MANIFEST_FILE, FileRecord, Manifest, encode_manifest

CHUNK = 8 << 20


class BundleWriter:
    """Files of a bundle under construction; ``folder`` is where engines may be built in place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, FileRecord] = {}

    def write(self, name: str, data: bytes) -> None:
        """A small file from memory; ``name`` is relative to the bundle, posix."""
        path = self._path(name)
        path.write_bytes(data)
        self.files[name] = FileRecord(sha256=hashlib.sha256(data).hexdigest(), size=len(data))

    def copy(self, name: str, source: Path, record: FileRecord) -> None:
        """A byte-identical copy of a file that was hashed already (loading verifies it again)."""
        shutil.copyfile(source, self._path(name))
        self.files[name] = record

    def receive(self, name: str, content: IO[bytes]) -> FileRecord:
        """A file from a stream, hashed on its way."""
        digest, size = hashlib.sha256(), 0
        with self._path(name).open("wb") as file:
            while chunk := content.read(CHUNK):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        self.files[name] = FileRecord(sha256=digest.hexdigest(), size=size)
        return self.files[name]

    def add(self, name: str, progress: Progress = QUIET) -> None:
        """A file that was written into ``folder`` by someone else: hash and list it."""
        path = self.folder / name
        self.files[name] = hash_file(path, progress)

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest; the files on disk become durable before the bundle gets its name."""
        (self.folder / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
        for name in (*self.files, MANIFEST_FILE):
            with open(self.folder / name, "rb") as file:
                os.fsync(file.fileno())

    def _path(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def hash_file(path: Path, progress: Progress = QUIET) -> FileRecord:
    """SHA-256 and size, read in chunks."""
    digest, size = hashlib.sha256(), path.stat().st_size
    with progress.stage("hashing", size) as stage, open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            stage.advance(len(chunk))
    return FileRecord(sha256=digest.hexdigest(), size=size)


def check_destination(out: Path) -> None:
    """Refuse to replace anything that is not a bundle. Raises BundleError."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise BundleError(f"{out}: exists and is not a folder. Choose another --out.")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST_FILE).is_file():
        raise BundleError(f"{out}: exists and is not a bundle (no {MANIFEST_FILE}). Choose another --out.")
    if not out.parent.is_dir():
        raise BundleError(f"{out}: the folder {out.parent} does not exist. Create it first.")


@contextlib.contextmanager
def writing(out: Path) -> Iterator[BundleWriter]:
    """A writer whose bundle appears as ``out`` when the block ends without an error, replacing a bundle there.

    On any error or interrupt nothing is left behind. A full disk or a read-only folder is a BundleError.
    """
    out = out.absolute()
    check_destination(out)
    _remove_leftovers(out)
    folder = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        folder.mkdir()
        yield BundleWriter(folder)
        _swap(folder, out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG):
            raise BundleError(
                f"{out}: cannot be written ({os.strerror(error.errno)}). Nothing was left behind."
            ) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _swap(folder: Path, out: Path) -> None:
    """Give the finished folder its name; a bundle already there steps aside first and is then removed."""
    old = out.parent / f".{out.name}.replaced-{os.getpid()}"
    if out.exists():
        os.rename(out, old)
    os.rename(folder, out)
    shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(out: Path) -> None:
    """Folders of builds whose process is gone; a bundle that such a build had moved aside gets its name back."""
    for path in sorted(out.parent.glob(f".{out.name}.*-*")):
        kind, _, pid = path.name.removeprefix(f".{out.name}.").partition("-")
        if kind not in ("partial", "replaced") or not pid.isdigit() or _alive(int(pid)):
            continue
        if kind == "replaced" and not out.exists():
            os.rename(path, out)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
