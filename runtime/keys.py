"""The API keys that a server accepts: from the environment or a file that can be read again while it runs."""

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from bei.errors import BeiError

VARIABLE = "BEI_API_KEYS"


class Keys:
    """Kept as digests, compared in a time that tells nothing about them."""

    def __init__(self, keys: Iterable[str], file: Path | None = None) -> None:
        self._file = file
        self._digests = [_digest(key.encode()) for key in keys]

    def accept(self, key: bytes) -> bool:
        """Whether this is one of the keys; all of them are compared."""
        given = _digest(key)
        return sum([hmac.compare_digest(given, digest) for digest in self._digests]) > 0

    def reload(self) -> None:
        """Read the file again; keys from the environment stay. Raises BeiError, and the old keys stay."""
        if self._file is not None:
            self._digests = [_digest(key.encode()) for key in _read(self._file)]

    def __len__(self) -> int:
        return len(self._digests)


def find_keys(
    file: Path | None, environment: Mapping[str, str] = os.environ, *, variable: str = VARIABLE
) -> Keys | None:
    """The keys of ``file`` (one a line, # begins a comment), else of ``variable`` (separated by commas or spaces).

    None when neither is given: the server is open. Raises BeiError, also for a file or variable without a key.
    """
    if file is not None:
        return Keys(_read(file), file)
    if variable not in environment:
        return None
    keys = environment[variable].replace(",", " ").split()
    if not keys:
        raise BeiError(f"{variable}: set, but holds no key. Unset it to serve without keys.")
    return Keys(keys)


def _read(file: Path) -> list[str]:
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise BeiError(f"{file}: the API keys cannot be read ({reason}). Check --api-key-file.") from None
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise BeiError(f"{file}: holds no API key (need one a line). Check --api-key-file.")
    return keys


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
