"""The kernels that TensorRT-RTX compiled for this GPU, kept from one start to the next."""

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bei.gpu import Gpu, driver_version
from bei.manifest import EngineRecord

MAX_BYTES = 100 << 20
"""The library warns of larger caches; one that grew so large is begun anew."""

SAVE_AFTER = (1, 64, 1024)
"""Calls after which the cache is also written, because a server that is killed never closes its engine."""


def cache_files(record: EngineRecord, bundle: Path, gpu: Gpu, version: str) -> tuple[Path, ...]:
    """Where the cache may lie, the best place first: beside the bundle, or in the user's cache folder where the bundle
    cannot be written beside. One file per engine, GPU model, library version and driver."""
    driver = driver_version() or "cuda " + ".".join(map(str, gpu.cuda))
    name = re.sub(r"[^a-z0-9]+", "-", f"{record.target} {gpu.name} {version} {driver}".lower()) + ".bin"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = f"{bundle.name}.cache"
    return bundle.with_name(folder) / name, home / "bei" / folder / name


class RuntimeCache:
    """A library's cache and its file.

    The library itself rejects a cache from another GPU, version or driver. One that cannot be read or written only
    costs the time to compile again.
    """

    def __init__(self, cache: Any, files: Sequence[Path]) -> None:
        self._cache, self._files = cache, files
        self._stored = b""
        self._calls = 0
        for file in files:
            with contextlib.suppress(OSError):
                if file.stat().st_size <= MAX_BYTES and cache.deserialize(stored := file.read_bytes()):
                    self._stored = stored
                    break

    @property
    def handle(self) -> Any:
        """The library's object."""
        return self._cache

    @property
    def size(self) -> int:
        """Bytes read or written last."""
        return len(self._stored)

    def count(self) -> None:
        """One call of the engine is done."""
        self._calls += 1
        if self._calls in SAVE_AFTER:
            self.save()

    def save(self) -> None:
        """Write what is new, to the first place that can be written."""
        content = bytes(self._cache.serialize())
        if content != self._stored and any(_write(file, content) for file in self._files):
            self._stored = content


def _write(file: Path, content: bytes) -> bool:
    """Under a name of this process first, then renamed: a reader never sees half a cache."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        return False
    return True
