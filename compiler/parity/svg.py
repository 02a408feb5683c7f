"""Charts as inline SVG, drawn for a width of 400 so that their text stays readable on a phone.

Colours are CSS classes of the page (``report.html``), so one drawing serves light and dark. Every chart says in words
what it shows, for those who cannot see it. ``key`` is unique on the page.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from bei.compiler.parity.layers import Drift
from bei.compiler.parity.numbers import number
from bei.compiler.parity.report import FP16_MAX, Histogram, Point, RangeRow

WIDTH, HEIGHT = 400.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 20.0, 30.0, 40.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """Numbers from ``low`` to ``high`` along one side of the plot; ``ticks`` are places and labels."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    title: str

    def at(self, value: float) -> float:
        """0 at ``low``, 1 at ``high``."""
        return (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)


def histogram_chart(key: str, histogram: Histogram, distance: str, limit: float | None) -> str:
    """How many texts lie how far off; ``limit`` is the largest distance that passes."""
    bound = [] if limit is None else [math.log10(limit)]
    x = _decades([*histogram.edges, *bound], distance)
    y = count_axis(max(histogram.counts), "texts")
    bars = []
    for left, right, n in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False):
        x0, x1, top = _px(x, left), _px(x, right), _py(y, n)
        if n:
            bars.append(rect(x0 + 0.7, top, x1 - x0 - 1.4, HEIGHT - BOTTOM - top, "bar"))
    words = f"{sum(histogram.counts)} texts; {distance} between 1e{histogram.edges[0]:g} and 1e{histogram.edges[-1]:g}"
    return chart(key, f"Distribution of {distance}", words, [*axes(x, y), *bars, *_vertical(x, limit)])


def length_chart(key: str, points: Sequence[Point], distance: str, limit: float | None) -> str:
    """Distance of every text over its number of tokens."""
    logs = [_log(point.distance) for point in points]
    bound = [] if limit is None else [math.log10(limit)]
    x = _powers_of_two(max(point.tokens for point in points))
    y = _decades([*logs, *bound], distance)
    dots = [
        _dot(_px(x, math.log2(point.tokens)), _py(y, log), limit is not None and point.distance > limit)
        for point, log in zip(points, logs, strict=True)
    ]
    longest = max(point.tokens for point in points)
    words = f"{len(points)} texts of 1 to {longest} tokens; largest {distance} {number(max(p.distance for p in points))}"
    return chart(key, f"{distance} by length", words, [*axes(x, y), *dots, *_horizontal(y, limit, "limit")])


def drift_chart(key: str, drift: Drift) -> str:
    """Relative error of the hidden states, layer after layer."""
    errors = [row.relative_error for row in drift.rows]
    logs = [None if error is None else _log(error) for error in errors]
    x = _layers([row.name for row in drift.rows])
    y = _decades([*(log for log in logs if log is not None), math.log10(drift.limit)], "relative error")
    drawn = [(i, log) for i, log in enumerate(logs) if log is not None]
    path = " ".join(f"{_px(x, i):.1f},{_py(y, log):.1f}" for i, log in drawn)
    marks = [f'<polyline points="{path}" class="line"/>']
    marks += [_dot(_px(x, i), _py(y, log), 10**log > drift.limit) for i, log in drawn]
    words = f"first layer past {drift.limit:g}: {drift.first or 'none'}; largest step: {drift.jump or 'none'}"
    return chart(
        key, "Drift, layer by layer", words, [*axes(x, y), *marks, *_horizontal(y, drift.limit, "limit")]
    )


def range_chart(key: str, ranges: Sequence[RangeRow]) -> str:
    """Largest magnitude of every site over the layers, before and after folding, under the largest FP16 number."""
    layers = sorted({_layer(row.site) for row in ranges})
    place = {layer: i for i, layer in enumerate(layers)}
    values = [v for row in ranges for v in (row.before, row.after) if v]
    x = _layers([_layer_name(layer) for layer in layers])
    y = _decades([*(math.log10(v) for v in values), math.log10(FP16_MAX)], "largest magnitude")
    dots = []
    for row in ranges:
        cx = _px(x, place[_layer(row.site)])
        dots.append(_magnitude(cx, y, row.before, "before", row.site))
        if row.after is not None:
            dots.append(_magnitude(cx, y, row.after, "after", f"{row.site} after folding"))
    top = max(ranges, key=lambda row: row.before)
    words = f"{len(ranges)} sites; the largest is {top.site} with {number(top.before)}"
    return chart(
        key, "Range audit", words, [*axes(x, y), *dots, *_horizontal(y, FP16_MAX, "FP16 limit 65504")]
    )


def _magnitude(cx: float, y: Axis, value: float, kind: str, said: str) -> str:
    over = " over" if value > FP16_MAX else ""
    title = f"<title>{escape(said)}: {number(value)}</title>"
    return (
        f'<circle cx="{cx:.1f}" cy="{_py(y, _log(value)):.1f}" r="2.8" class="{kind}{over}">{title}</circle>'
    )


def chart(key: str, title: str, words: str, parts: Sequence[str]) -> str:
    """A drawing with its title and its words for those who cannot see it."""
    key = escape(key)
    head = f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-words">{escape(words)}</desc>'
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-labelledby="{key}-title {key}-words">{head}'
        + "".join(parts)
        + "</svg>"
    )


def axes(x: Axis, y: Axis) -> list[str]:
    """Lines, ticks and titles."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [_line(LEFT, bottom, right, bottom, "axis")]
    for value, label in y.ticks:
        at = _py(y, value)
        parts += [_line(LEFT, at, right, at, "grid"), _text(LEFT - 6, at + 4, label, "end")]
    for value, label in x.ticks:
        at = _px(x, value)
        parts += [_line(at, bottom, at, bottom + 4, "axis"), _text(at, bottom + 16, label, "middle")]
    parts.append(_text((LEFT + right) / 2, HEIGHT - 6, x.title, "middle", "name"))
    parts.append(_text(4, 12, y.title, "start", "name"))
    return parts


def _vertical(x: Axis, limit: float | None) -> list[str]:
    if limit is None:
        return []
    at = _px(x, math.log10(limit))
    anchor = "end" if x.at(math.log10(limit)) > 0.5 else "start"
    label = _text(at + (-4 if anchor == "end" else 4), TOP + 8, "limit", anchor, "limit")
    return [_line(at, TOP - 4, at, HEIGHT - BOTTOM, "limit"), label]


def _horizontal(y: Axis, limit: float | None, label: str) -> list[str]:
    if limit is None:
        return []
    at = _py(y, math.log10(limit))
    below = at < TOP + 14
    text = _text(LEFT + 6, at + (13 if below else -5), label, "start", "limit")
    return [_line(LEFT, at, WIDTH - RIGHT, at, "limit"), text]


def _decades(logs: Sequence[float], title: str) -> Axis:
    """Powers of ten around log10 values, at most about seven of them labelled."""
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    high = max(high, low + 1)
    step = -(-(high - low) // 6)
    ticks = tuple((float(v), _power(v)) for v in range(low, high + 1, step))
    return Axis(low=low, high=high, ticks=ticks, title=title)


def count_axis(most: int, title: str) -> Axis:
    """Whole numbers from 0, at most about six of them labelled."""
    step = max(1, 10 ** math.floor(math.log10(max(most, 1))))
    step = next(s for s in (step // 5 or 1, step // 2 or 1, step, 2 * step) if most / s <= 6)
    top = -(-most // step) * step
    ticks = tuple((float(v), str(v)) for v in range(0, top + 1, step))
    return Axis(low=0, high=float(max(top, 1)), ticks=ticks, title=title)


def _powers_of_two(longest: int) -> Axis:
    high = max(1, math.ceil(math.log2(longest)))
    step = -(-high // 8)
    ticks = tuple((float(v), str(2**v)) for v in range(0, high + 1, step))
    return Axis(low=0, high=high, ticks=ticks, title="tokens")


def _layers(names: Sequence[str]) -> Axis:
    """Places 0 … n − 1; the number of a layer is its label, and letters stand for what is before and after."""
    step = -(-len(names) // 12)
    short = [{"embed": "in", "output": "out"}.get(name, name.removeprefix("layers.")) for name in names]
    ticks = tuple((float(i), label) for i, label in enumerate(short) if i % step == 0)
    return Axis(low=-0.5, high=len(names) - 0.5, ticks=ticks, title="layer")


def _layer(site: str) -> tuple[int, int]:
    """Embeddings first, then layers by number, then everything else."""
    first, _, rest = site.partition(".")
    if first == "layers":
        return 1, int(rest.split(".")[0])
    return (0, 0) if first == "embed" else (2, 0)


def _layer_name(layer: tuple[int, int]) -> str:
    return {0: "embed", 1: str(layer[1]), 2: "output"}[layer[0]]


def _dot(cx: float, cy: float, over: bool) -> str:
    return f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="2.7" class="dot{" over" if over else ""}"/>'


def _power(exponent: int) -> str:
    if exponent in (0, 1):
        return str(10**exponent)
    return "10" + "".join("⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".index(c)] for c in str(exponent))


def _log(value: float) -> float:
    return math.log10(max(value, 1e-16))


def _px(x: Axis, value: float) -> float:
    return LEFT + x.at(value) * (WIDTH - LEFT - RIGHT)


def _py(y: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - y.at(value) * (HEIGHT - TOP - BOTTOM)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    """A rectangle of a CSS class."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{kind}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'
