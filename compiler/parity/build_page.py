"""The part of the report that says how an engine was built: layer by layer, and as a picture."""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from bei.compiler.parity.build_svg import accumulation_chart, kernels_chart
from bei.compiler.parity.report import EngineReport
from bei.runtime.evidence import OTHER, LayerFacts, layers, sentences


def build_section(engine: EngineReport) -> str:
    """HTML; empty for an engine whose build left no such evidence."""
    rows = layers(engine.evidence)
    if not rows:
        return ""
    said = "".join(f"<li>{escape(line)}</li>" for line in sentences(engine.evidence, engine.profiles))
    return (
        f'<h3>How it was built</h3><p class="soft small">Read from the builder\'s own log and from the plan.</p>'
        f'<ul class="small">{said}</ul><div class="charts">{_figures(engine.target, rows)}</div>{_table(rows)}'
    )


def _figures(target: str, rows: Sequence[LayerFacts]) -> str:
    numbered = [row for row in rows if row.name != OTHER]
    figures = ""
    if any(row.kernels is not None for row in numbered):
        figures += (
            f"<figure><strong>Kernels by layer</strong>{kernels_chart(f'kernels-{target}', numbered)}"
            "<figcaption>Launches from one attention to the next.</figcaption></figure>"
        )
    return figures + (
        f"<figure><strong>Accumulation</strong>{accumulation_chart(f'accumulation-{target}', rows)}"
        '<figcaption><span class="cell-key fp32">fp32</span> <span class="cell-key other">narrower, or the '
        'library\'s choice</span> <span class="cell-key unread">not readable</span></figcaption></figure>'
    )


def _table(rows: Sequence[LayerFacts]) -> str:
    body = "".join(_row(*group) for group in _alike(rows))
    return (
        '<div class="wide"><table><caption>Layer by layer; equal neighbours share a row</caption><thead><tr>'
        '<th scope="col">layer</th><th scope="col" class="number">kernels</th><th scope="col">attention</th>'
        '<th scope="col">products</th><th scope="col">their weights</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _alike(rows: Sequence[LayerFacts]) -> Iterator[tuple[str, LayerFacts]]:
    """Neighbours that differ only in their name, under one name."""
    for _, group in groupby(rows, key=lambda row: (row.kernels, row.fused, row.attention, dict(row.gemms))):
        members = list(group)
        first, last = members[0], members[-1]
        yield (first.name if first is last else f"{first.name} – {last.name}"), first


def _row(name: str, row: LayerFacts) -> str:
    kernels = "–" if row.kernels is None else str(row.kernels)
    return (
        f'<tr><th scope="row">{escape(name)}</th><td class="number">{kernels}</td><td>{escape(_attention(row))}</td>'
        f"<td>{escape(_products(row))}</td><td>{escape(_weights(row))}</td></tr>"
    )


def _attention(row: LayerFacts) -> str:
    if row.name == OTHER:
        return "–"
    if not row.fused:
        return "not fused"
    if row.attention is None:
        return "fused, accumulation not readable"
    products, sums = row.attention
    return f"fused, q·kᵀ {products}, weights·v {sums}"


def _products(row: LayerFacts) -> str:
    kinds: dict[str, list[str]] = {}
    for name, gemm in row.gemms.items():
        kinds.setdefault(gemm.accumulation, []).append(name)
    return "; ".join(f"{', '.join(names)}: {kind}" for kind, names in kinds.items()) or "–"


def _weights(row: LayerFacts) -> str:
    kinds = dict.fromkeys(gemm.weights or "not listed" for gemm in row.gemms.values())
    return ", ".join(kinds) or "–"
