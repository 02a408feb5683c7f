"""Where inputs lie and outputs go: local folders and object stores, through pyarrow's filesystems or fsspec's.

A file is written whole or not at all: on a local disk under another name, made durable and renamed; in an object
store the object appears when its upload is complete.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from importlib.util import find_spec
from mmap import mmap
from pathlib import Path

from pyarrow import ArrowException, fs

from bei.errors import InputError

OF_PYARROW = ("file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")
PARTIAL = ".partial-"
"""In the names of files being written; what a killed job leaves of them is removed by the next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A path on a filesystem; with ``prefix`` before it and ``query`` after it, it is the URI again."""

    filesystem: fs.FileSystem
    path: str
    prefix: str = ""
    query: str = ""

    @property
    def local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    @property
    def uri(self) -> str:
        return self.prefix + self.path.lstrip("/") + self.query if self.prefix else self.path

    def at(self, path: str) -> "Place":
        """Another path on the same filesystem."""
        return replace(self, path=path)

    def child(self, name: str) -> "Place":
        return self.at(f"{self.path.rstrip('/')}/{name}")

    def info(self) -> fs.FileInfo:
        with reading(self):
            return self.filesystem.get_file_info(self.path)

    def list(self, *, recursive: bool = False) -> list[fs.FileInfo]:
        """What the folder holds, by path; empty where there is none."""
        with reading(self):
            selector = fs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
            return sorted(self.filesystem.get_file_info(selector), key=lambda info: info.path)

    def read(self) -> bytes:
        """The whole file."""
        with reading(self), self.filesystem.open_input_stream(self.path, compression=None) as stream:
            return bytes(stream.read())


def locate(uri: str) -> Place:
    """The place that a path or URI names. Raises InputError."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Place(filesystem=fs.LocalFileSystem(), path=os.path.abspath(os.path.expanduser(uri)))
    if scheme == "file":
        return Place(filesystem=fs.LocalFileSystem(), path=os.path.abspath(rest))
    try:
        if scheme in OF_PYARROW:
            found, path = fs.FileSystem.from_uri(uri)
        else:
            found, path = _of_fsspec(uri)
    except (ArrowException, ImportError, OSError, ValueError) as error:
        raise InputError(f"{uri}: cannot be reached ({_one_line(error)}).") from None
    body, mark, query = uri.partition("?")
    inner = path.strip("/")
    prefix = body.rstrip("/").removesuffix(inner) if body.rstrip("/").endswith(inner) else f"{scheme}://"
    return Place(filesystem=found, path=path.rstrip("/"), prefix=prefix, query=mark + query)


def _of_fsspec(uri: str) -> tuple[fs.FileSystem, str]:
    if find_spec("fsspec") is None:
        raise ImportError("fsspec is not installed; run: pip install fsspec")
    import fsspec

    found, path = fsspec.core.url_to_fs(uri)
    return fs.PyFileSystem(fs.FSSpecHandler(found)), path


def write(folder: Place, name: str, data: bytes | mmap) -> None:
    """Put ``data`` into the folder under ``name``, whole or not at all. Raises InputError."""
    try:
        if folder.local:
            _write_local(Path(folder.path), name, data)
        else:
            with folder.filesystem.open_output_stream(folder.child(name).path, compression=None) as stream:
                stream.write(data)
    except (OSError, ArrowException) as error:
        raise InputError(
            f"{folder.child(name).uri}: cannot be written ({_one_line(error)}). "
            "Mend that and run the same command again: it goes on where it was."
        ) from None


def remove_partial(folder: Place, *, unchanged: timedelta = timedelta(0)) -> None:
    """Drop what killed jobs were writing: files that have been as they are for so long. Raises OSError, InputError."""
    latest = datetime.now(timezone.utc) - unchanged
    for info in folder.list():
        if PARTIAL in info.base_name and info.mtime is not None and info.mtime <= latest:
            with contextlib.suppress(FileNotFoundError):  # somebody else was faster
                folder.filesystem.delete_file(info.path)


def make_folder(folder: Place) -> None:
    """Create it and its parents where they are missing. Raises InputError."""
    try:
        folder.filesystem.create_dir(folder.path, recursive=True)
    except (OSError, ArrowException) as error:
        raise InputError(
            f"{folder.uri}: cannot be created ({_one_line(error)}). Choose another place."
        ) from None


@contextlib.contextmanager
def reading(place: Place) -> Iterator[None]:
    """Turns what storage and formats raise into InputError."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{place.uri}: no such file or folder.") from None
    except ArrowException as error:
        raise InputError(f"{place.uri}: cannot be read ({_one_line(error)}).") from None
    except (OSError, EOFError) as error:
        raise InputError(f"{place.uri}: cannot be read ({_one_line(error)}).") from None


def _write_local(folder: Path, name: str, data: bytes | mmap) -> None:
    temporary = folder / f".{name}{PARTIAL}{uuid.uuid4().hex}"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)  # else the name may be lost with the power
    finally:
        os.close(directory)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and type(error).__module__ == "builtins":
        return error.strerror.splitlines()[0]
    return " ".join(str(error).split()) or type(error).__name__
