"""Optimisation profiles: which shapes a plan takes, and the ones it is tuned for.

A profile bounds every axis by itself, so it cannot say "at most N tokens in all". The token budget therefore decides
how many rows each profile takes at its length: any B x L with B·L within the budget fits one of them. With one
profile (a library that specialises kernels at run time) the axes simply have their limits, and whoever runs the plan
keeps to the budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bei.errors import EngineError

_SHORTEST = 16  # a profile for shorter texts alone would not pay
_STEP = 4  # each profile reaches four times as far as the one before
_TYPICAL = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Smallest, tuned-for and largest size of an axis."""

    low: int
    tuned: int
    high: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
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


def profiles(max_batch: int, max_length: int, max_batch_tokens: int, most: int) -> tuple[Profile, ...]:
    """At most ``most`` profiles, for short texts first. Raises EngineError for limits that contradict each other."""
    if min(max_batch, max_length, max_batch_tokens) < 1:
        raise EngineError(
            f"limits: batch {max_batch}, length {max_length}, tokens {max_batch_tokens}; each must be at least 1."
        )
    if max_batch_tokens < max_length:
        raise EngineError(
            f"limits: {max_batch_tokens} tokens a batch are less than one text of {max_length}. "
            "Raise the tokens a batch or lower the length."
        )
    lengths = [max_length]
    while len(lengths) < most and lengths[0] // _STEP >= _SHORTEST:
        lengths.insert(0, lengths[0] // _STEP)
    shorter = [0, *lengths[:-1]]
    return tuple(
        _profile(min(max_batch, max_batch_tokens // (below + 1)), length, max_batch_tokens)
        for below, length in zip(shorter, lengths, strict=True)
    )


def _profile(rows: int, length: int, budget: int) -> Profile:
    tuned_length = min(length, _TYPICAL)
    tuned_rows = max(1, min(rows, budget // tuned_length))
    return Profile(
        batch=Range(low=1, tuned=tuned_rows, high=rows),
        sequence=Range(low=1, tuned=tuned_length, high=length),
        tokens=Range(low=1, tuned=tuned_rows * tuned_length, high=min(budget, rows * length)),
    )
