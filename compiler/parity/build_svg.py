"""Charts of a TensorRT build: kernels a layer, and in which precision every product of every layer accumulates."""

from collections.abc import Sequence
from html import escape

from bei.compiler.parity.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    axes,
    chart,
    count_axis,
    rect,
)
from bei.runtime.evidence import LayerFacts

CELL = {"fp32": "fp32", "not readable": "unread"}
"""Class of a cell by its accumulation; anything else is "other"."""


def kernels_chart(key: str, rows: Sequence[LayerFacts]) -> str:
    """A bar for each layer but the last, from whose attention no other follows."""
    counted = [row for row in rows if row.kernels is not None]
    most = max(row.kernels or 0 for row in counted)
    x, y = _layer_axis([row.name for row in counted]), count_axis(most, "kernels")
    step = (WIDTH - LEFT - RIGHT) / len(counted)
    bars = []
    for i, row in enumerate(counted):
        top = HEIGHT - BOTTOM - y.at(row.kernels or 0) * (HEIGHT - TOP - BOTTOM)
        bars.append(rect(LEFT + (i + 0.1) * step, top, 0.8 * step, HEIGHT - BOTTOM - top, "bar"))
    words = ", ".join(f"layer {row.name}: {row.kernels}" for row in counted)
    return chart(key, "Kernels by layer", words, [*axes(x, y), *bars])


def accumulation_chart(key: str, rows: Sequence[LayerFacts]) -> str:
    """A column for each layer, a line for each product in it; attention is two products."""
    cells = [_cells(row) for row in rows]
    names = list(dict.fromkeys(name for column in cells for name in column))
    x = _layer_axis([row.name for row in rows])
    high = (HEIGHT - TOP - BOTTOM) / len(names)
    ticks = tuple((len(names) - i - 0.5, name) for i, name in enumerate(names))
    y = Axis(low=0, high=len(names), ticks=ticks, title="product")
    step = (WIDTH - LEFT - RIGHT) / len(rows)
    marks = [
        _cell(
            LEFT + i * step + 0.05 * step,
            TOP + names.index(name) * high + 0.1 * high,
            0.9 * step,
            0.8 * high,
            kind,
        )
        for i, column in enumerate(cells)
        for name, kind in column.items()
    ]
    narrower = sum(kind != "fp32" for column in cells for kind in column.values())
    words = f"{sum(map(len, cells))} products in {len(rows)} layers; {narrower} of them not in fp32"
    return chart(key, "Accumulation of every product", words, [*axes(x, y), *marks])


def _cells(row: LayerFacts) -> dict[str, str]:
    attention = row.attention or (("not readable",) * 2 if row.fused and row.name.isdigit() else ())
    found = dict(zip(("q·kᵀ", "w·v"), attention, strict=False))
    return found | {name: gemm.accumulation for name, gemm in row.gemms.items()}


def _cell(x: float, y: float, width: float, height: float, accumulation: str) -> str:
    title = f"<title>{escape(accumulation)}</title>"
    kind = CELL.get(accumulation, "other")
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="cell {kind}">{title}</rect>'


def _layer_axis(names: Sequence[str]) -> Axis:
    step = -(-len(names) // 12)
    ticks = tuple((i + 0.5, name) for i, name in enumerate(names) if i % step == 0)
    return Axis(low=0, high=len(names), ticks=ticks, title="layer")
