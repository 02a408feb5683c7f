"""How long a batch may take before its engine counts as hanging: judged by the batches before it."""

import math
from collections import deque

HANG_SECONDS = 30.0
"""The least that any batch gets."""

FACTOR = 50
"""Times what a slow batch of that size takes. A call that hangs never ends, so this need not be near."""

REMEMBERED = 256
"""Batches."""

SLOW = 0.99


class Pace:
    """Remembers what recent batches took for each of their tokens, those of the warm-up first. Short batches cost more a
    token than long ones and texts of great length more again: FACTOR leaves room for both."""

    def __init__(self, hang_seconds: float = HANG_SECONDS) -> None:
        self.hang_seconds = hang_seconds
        self._recent: deque[float] = deque(maxlen=REMEMBERED)

    def note(self, slots: int, seconds: float) -> None:
        """A batch of so many tokens, padding included, that ran."""
        self._recent.append(seconds / max(1, slots))

    def limit(self, slots: int) -> float:
        """Seconds after which a batch of so many tokens hangs; ``hang_seconds`` as long as nothing has run."""
        if not self._recent:
            return self.hang_seconds
        ordered = sorted(self._recent)
        slow = ordered[math.ceil(SLOW * len(ordered)) - 1]
        return max(self.hang_seconds, FACTOR * slow * slots)
