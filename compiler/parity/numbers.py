"""How measures are written for people."""

import math

from bei.compiler.parity.gate import Threshold


def number(value: float | None) -> str:
    """Up to three digits that say something: 0.99987, 1 − 8.1e-13, 3.1e-07, 12; "–" for None.

    Close to 1 the gap is what counts: a cosine is never rounded up to 1.
    """
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    gap = 1 - value
    if 0 < gap < 1e-5:
        return f"1 − {gap:.1e}"
    if 0 < gap < 0.1:
        return f"{value:.{1 - math.floor(math.log10(gap))}f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def bound(threshold: Threshold | None) -> str:
    """≥ 0.9999, ≤ 0.01, or nothing."""
    if threshold is None:
        return ""
    if threshold.at_least is not None:
        return f"≥ {threshold.at_least:g}"
    return "" if threshold.at_most is None else f"≤ {threshold.at_most:g}"
