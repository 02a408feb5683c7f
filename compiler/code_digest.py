"""A digest of code and data files: what says that an answer computed before still holds."""

import hashlib
import os
from functools import cache
from pathlib import Path

CODE: frozenset[str] = frozenset({".py", ".cu", ".cuh", ".json", ".yaml", ".txt", ".html"})
"""Suffixes of the files that decide what this package computes."""


@cache
def code_digest(folder: Path) -> str:
    """SHA-256 over names and contents of the code below ``folder``, links followed."""
    digest = hashlib.sha256()
    found = (Path(where, name) for where, _, names in os.walk(folder, followlinks=True) for name in names)
    for path in sorted(path for path in found if path.suffix in CODE):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()
