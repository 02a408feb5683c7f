"""What a run has done so far, in a file that the next run reads."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from bei.errors import InputError

T = TypeVar("T")


def read_state(path: Path, kind: type[T]) -> T | None:
    """The state in a file; None where there is no file. Raises InputError for a file that holds something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: not the result of an earlier run ({error}). Remove it, or give another place."
        ) from None


def write_state(path: Path, state: msgspec.Struct) -> None:
    """Indented JSON, whole or not at all. Raises InputError."""
    data = msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n"
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.absolute().parent, prefix=f".{path.name}.", delete=False
        ) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(file.name, 0o644)
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from None


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """The folder, created, for this process alone. Raises InputError where another works in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}). Choose another --out.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{folder}: another bei-compile --zoo is writing there. Wait for it to end."
            ) from None
        yield
