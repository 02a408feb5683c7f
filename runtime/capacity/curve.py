"""How long a call of an engine takes on one device, as it was measured, and what the host adds to a request.

A point is one batch: ``tokens`` that the engine computes (padding included where it pads), the ``length`` of its texts,
``calls`` in flight. Between points the time is interpolated; nothing is taken from one device to another.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import msgspec

from bei.manifest import Device, Layout

RESTED = 0
"""In the place of a number of calls: one call, before which the engine had nothing to do for REST seconds."""

REST = 0.02
"""After which a call takes clearly longer than in the middle of work: its weights have left the caches."""

SHAPE = ("dim", "heads", "kv_heads", "head_dim", "ffn", "act", "gated", "bias")
"""What an encoder's time depends on, beside its layers."""


class Point(msgspec.Struct, frozen=True, array_like=True):
    """``calls`` in flight, or RESTED. ``length``: the longest text's of a padded batch; the `effective_length` of a packed
    one."""

    calls: int
    length: float
    tokens: int
    seconds: float


class EngineCurve(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One engine on one device. ``card`` is its name in the catalogue, ``threads`` the cores that a CPU engine uses;
    ``host`` is the processor beside it; ``source`` says what measured it, and when."""

    device: str
    card: str
    host: str
    model: str
    shape: dict[str, Any]
    target: str
    kind: Device
    layout: Layout
    threads: int
    concurrency: int
    source: str
    points: tuple[Point, ...]

    @property
    def max_tokens(self) -> int:
        """Of the largest batch that was measured."""
        return max(point.tokens for point in self.points)

    @property
    def max_length(self) -> int:
        """Of the longest single text that was measured, or of the longest in a batch."""
        return round(max(point.length for point in self.points))


class HostCosts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds of CPU for one request: of the event loop ``request`` and ``text`` for each text; of a tokenizer thread
    ``tokenize_request``, ``tokenize_text`` and ``tokenize_token``; ``beside_engine`` times that where an engine computes on
    the same cores, whose calls empty the caches. ``idle`` passes with nothing busy: wake-ups, the loopback."""

    device: str
    cores: int
    source: str
    request: float
    text: float
    tokenize_request: float
    tokenize_text: float
    tokenize_token: float
    beside_engine: float
    idle: float


def shape_of(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """What of an encoder (as the manifest has it) decides how long it takes; the same where only weights differ."""
    layers = encoder.get("layers", ())
    kinds = [layer for index, layer in enumerate(layers) if layer not in layers[:index]]
    return {name: encoder.get(name) for name in SHAPE} | {"layers": len(layers), "kinds": kinds}


def effective_length(lengths: Sequence[int]) -> float:
    """What attention sees of a packed batch: the length in which the average token stands."""
    return sum(length * length for length in lengths) / sum(lengths)


@dataclass(frozen=True)
class Times:
    """A curve, ready to be asked."""

    curve: EngineCurve

    def seconds(self, lengths: Sequence[int]) -> tuple[float, ...]:
        """Of a call with texts of these lengths: with one call in flight, with two, … as many as can be."""
        tokens, length = self.batch(lengths)
        measured = {k: lines.seconds(tokens, length) for k, lines in self._lines.items() if k != RESTED}
        return tuple(_between(measured, calls) for calls in range(1, self.curve.concurrency + 1))

    def rested(self, lengths: Sequence[int]) -> float:
        """How many times as long such a call takes after REST seconds of nothing; 1 where that was not measured."""
        if RESTED not in self._lines:
            return 1.0
        tokens, length = self.batch(lengths)
        return max(1.0, self._lines[RESTED].seconds(tokens, length) / self.seconds(lengths)[0])

    def batch(self, lengths: Sequence[int]) -> tuple[int, float]:
        """Tokens computed, and the length that counts."""
        if self.curve.layout == "packed":
            return sum(lengths), effective_length(lengths)
        longest = max(lengths)
        return longest * len(lengths), longest

    @cached_property
    def _lines(self) -> dict[int, "_Lines"]:
        calls = sorted({point.calls for point in self.curve.points})
        return {k: _Lines([point for point in self.curve.points if point.calls == k]) for k in calls}


class _Lines:
    """Points with the same number of calls in flight: for each length, ascending, time against tokens.

    A length lacks batches smaller than one text of it; those of the lengths before stand in, so that a text between two
    lengths is found between one text of either. Where larger ones were not measured, those of the lengths after do.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        self._lengths = sorted({point.length for point in points})
        self._of = [
            sorted((point.tokens, point.seconds) for point in points if point.length == length)
            for length in self._lengths
        ]
        for shorter, line in pairwise(self._of):
            line[:0] = [one for one in shorter if one[0] < line[0][0]]
        for longer, line in pairwise(reversed(self._of)):
            line += [one for one in longer if one[0] > line[-1][0]]

    def seconds(self, tokens: int, length: float) -> float:
        above = bisect_left(self._lengths, length)
        if above == 0:
            return _along(self._of[0], tokens)
        if above == len(self._lengths):
            return _along(self._of[-1], tokens)
        low, high = self._lengths[above - 1], self._lengths[above]
        share = (length - low) / (high - low)
        return (1 - share) * _along(self._of[above - 1], tokens) + share * _along(self._of[above], tokens)


def _along(line: Sequence[tuple[int, float]], tokens: int) -> float:
    """On the line through the two points around ``tokens``; before the first point its time, after the last straight on."""
    first, least = line[0]
    if tokens <= first or len(line) == 1:
        return least * max(1.0, tokens / first)
    at = min(max(1, bisect_left(line, (tokens, 0.0))), len(line) - 1)
    (x0, y0), (x1, y1) = line[at - 1], line[at]
    return max(min(y0, y1), y0 + (y1 - y0) * (tokens - x0) / (x1 - x0))


def _between(measured: dict[int, float], calls: int) -> float:
    """Times with so many calls in flight, from those measured with fewer and with more."""
    if calls in measured:
        return measured[calls]
    low = max((k for k in measured if k < calls), default=min(measured))
    high = min((k for k in measured if k > calls), default=max(measured))
    if low >= high:
        return measured[high]
    share = (calls - low) / (high - low)
    return (1 - share) * measured[low] + share * measured[high]


def grid(max_length: int, max_tokens: int, max_rows: int) -> Iterator[tuple[int, int]]:
    """Rows and length of the batches to measure: doubling lengths up to the longest, doubling rows up to the tokens."""
    lengths = [8]
    while lengths[-1] * 2 < max_length:
        lengths.append(lengths[-1] * 2)
    for length in [one for one in lengths if one < max_length] + [max_length]:
        rows = 1
        while rows == 1 or (rows <= max_rows and rows * length <= max_tokens):
            yield rows, length
            rows *= 2
