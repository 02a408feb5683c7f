"""How measures are written for people."""

import math

from bei.compiler.parity.gate import Threshold


def number(value: float | None) -> str:
    """Up to three digits that say something: 0.9999998, 3.1e-07, 12; "–" for None.

    Close to 1 the digits after the nines count, so that a cosine is not rounded up to 1.
    """
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    gap = abs(1 - value)
    if gap < 0.1:
        return f"{value:.{min(16, 2 - math.floor(math.log10(gap)))}f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def bound(threshold: Threshold | None) -> str:
    """≥ 0.9999, ≤ 0.01, or nothing."""
    if threshold is None:
        return ""
    if threshold.at_least is not None:
        return f"≥ {threshold.at_least:g}"
    return "" if threshold.at_most is None else f"≤ {threshold.at_most:g}"
