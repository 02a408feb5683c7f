"""How much of a mapped file this process holds in memory."""

from pathlib import Path

import pytest

SMAPS = Path("/proc/self/smaps")
NEEDS_PROC = pytest.mark.skipif(not SMAPS.exists(), reason="needs /proc")


def resident_kib(file: Path) -> int:
    """KiB of all its mappings."""
    lines = SMAPS.read_text().splitlines()
    at = [i for i, line in enumerate(lines) if line.endswith(str(file))]
    return sum(int(line.split()[1]) for i in at for line in lines[i : i + 8] if line.startswith("Rss:"))
