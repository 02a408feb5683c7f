"""Optimisation profiles: which shapes a plan takes, and the ones it is tuned for.

A profile bounds every axis by itself, so it cannot say "at most N tokens in all": one profile for 256 texts and for
texts of 8192 tokens would take 128 times a budget of 16384 tokens, in memory too. So several profiles follow the curve
rows × length = budget, each a corner on it, and whoever runs the plan makes batches that fit one of them. Weights are
shared; no profile is larger than the budget.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bei.errors import EngineError

MOST = 4
"""Each profile costs one more compilation of every kernel."""

_TYPICAL = 128
_ALIGNED = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Smallest, tuned-for and largest size of an axis."""

    low: int
    tuned: int
    high: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeRange:
    """Rows, tokens of the longest row, tokens in all."""

    batch: Range
    sequence: Range
    tokens: Range

    def shapes(
        self, tensor: str, axes: Sequence[str]
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Smallest, tuned-for and largest shape of an input with these symbolic axes."""
        known = {"batch": self.batch, "sequence": self.sequence, "tokens": self.tokens}
        if not set(axes) <= set(known):
            raise EngineError(f"graph input {tensor}: axes {tuple(axes)} (need some of {', '.join(known)}).")
        ranges = [known[axis] for axis in axes]
        return tuple(r.low for r in ranges), tuple(r.tuned for r in ranges), tuple(r.high for r in ranges)


def shape_ranges(
    max_batch: int, max_length: int, max_batch_tokens: int, step: float
) -> tuple[ShapeRange, ...]:
    """One to `MOST` profiles, for short texts first; neighbours are at most ``step`` apart in length if `MOST` allows.

    A batch of any length may then hold at least 1/step of what the limits allow. Raises EngineError for limits that
    contradict each other.
    """
    if min(max_batch, max_length, max_batch_tokens) < 1:
        raise EngineError(
            f"limits: batch {max_batch}, length {max_length}, tokens {max_batch_tokens}; each must be at least 1."
        )
    if max_batch_tokens < max_length:
        raise EngineError(
            f"limits: {max_batch_tokens} tokens a batch are less than one text of {max_length}. "
            "Raise the tokens a batch or lower the length."
        )
    lengths = _lengths(max_batch_tokens // max_batch, max_length, step)
    shorter = [0, *lengths[:-1]]
    return tuple(
        _corner(min(max_batch, max_batch_tokens // length), below, length)
        for below, length in zip(shorter, lengths, strict=True)
    )


def _lengths(full: int, longest: int, step: float) -> list[int]:
    """Geometric from ``full``, the length up to which the largest batch is within the budget, to the longest."""
    if full >= longest:
        return [longest]
    first = max(1, full)
    count = min(MOST, math.ceil(math.log(longest / first, step) - 1e-9))
    between = [first * (longest / first) ** (i / count) for i in range(1, count)]
    return sorted({longest, *(min(longest, -(-round(n) // _ALIGNED) * _ALIGNED) for n in between)})


def _corner(rows: int, below: int, length: int) -> ShapeRange:
    """Up to ``rows`` rows of ``length``; tuned for full batches of its commonest lengths."""
    tuned = min(length, max(_TYPICAL, below + 1))
    return ShapeRange(
        batch=Range(low=1, tuned=rows, high=rows),
        sequence=Range(low=1, tuned=tuned, high=length),
        tokens=Range(low=1, tuned=rows * tuned, high=rows * length),
    )
