"""The ledger of a start: seconds from the birth of the process to each step."""

import os
import time
from pathlib import Path
from typing import Literal

Step = Literal["imported", "loaded", "warm", "ready", "answered"]


class ColdStart:
    """Each step's first time counts."""

    def __init__(self, born: float | None = None) -> None:
        """``born`` in seconds of `time.monotonic`."""
        self._born = _born() if born is None else born
        self.seconds: dict[Step, float] = {}

    def reached(self, step: Step) -> None:
        """Note the step, unless it was before."""
        if step not in self.seconds:
            self.seconds[step] = time.monotonic() - self._born


def _born(stat: Path = Path("/proc/self/stat")) -> float:
    """When this process began, on the clock of `time.monotonic`; where the system does not tell, now."""
    try:
        ticks = int(stat.read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        age = 0.0
    return time.monotonic() - age
