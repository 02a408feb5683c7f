"""The certificate as a page for people: one file, no script, nothing loaded from elsewhere."""

from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from pathlib import Path
from string import Template

from bei.compiler.parity.build_page import build_section
from bei.compiler.parity.numbers import bound, number
from bei.compiler.parity.report import FP16_MAX, EngineReport, Measure, ParityReport, RangeRow, Rung, TextRow
from bei.compiler.parity.svg import drift_chart, histogram_chart, length_chart, range_chart
from bei.manifest import Task, Verdict

PAGE = Path(__file__).with_name("report.html")

SAID: dict[Verdict, str] = {"passed": "✓ passed", "failed": "✗ failed", "not run": "not run"}
CLASS: dict[Verdict, str] = {"passed": "passed", "failed": "failed", "not run": "idle"}
TASKS: dict[Task, str] = {
    "embed": "embeddings",
    "embed-tokens": "token embeddings",
    "classify": "classification",
    "rerank": "reranking",
    "token-classify": "token classification",
}
ALONE = ("batch_difference", "padding_difference", "non_finite", "token_ids_differ")
"""Measures of the engine by itself; the others are against the reference."""
CARDS = 4
LARGEST = 8
MANY = 40


def render(report: ParityReport) -> str:
    """The whole page."""
    body = [_head(report), *(_engine(engine) for engine in report.engines)]
    if report.ranges:
        body.append(_ranges(report.ranges, report.decisions))
    return page(f"Parity: {report.model}", "\n".join(body))


def page(title: str, body: str) -> str:
    """A whole page; ``title`` is text, ``body`` HTML."""
    return _page().substitute(title=escape(title), body=body)


@cache
def _page() -> Template:
    return Template(PAGE.read_text(encoding="utf-8"))


def _head(report: ParityReport) -> str:
    revision = "" if report.revision is None else f" · revision <code>{escape(report.revision)}</code>"
    rows = "".join(_overview_row(engine) for engine in report.engines)
    return (
        '<header><p class="soft small">Parity with Hugging Face</p>'
        f'<div class="title"><h1>{escape(report.model)}</h1>{pill(report.verdict)}</div>'
        f'<p class="soft">{TASKS[report.task]}{revision} · measured with bei {escape(report.bei_version)}</p></header>'
        '<div class="wide"><table><caption>Every engine of this bundle</caption><thead><tr><th scope="col">engine</th>'
        '<th scope="col">verdict</th><th scope="col">precision</th><th scope="col">ran on</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _overview_row(engine: EngineReport) -> str:
    return (
        f'<tr><th scope="row"><code>{escape(engine.target)}</code></th><td>{pill(engine.verdict)}</td>'
        f"<td>{escape(engine.precision)}</td><td>{escape(engine.device or '–')}</td></tr>"
    )


def _engine(engine: EngineReport) -> str:
    key = escape(f"engine-{engine.target}")
    title = f'<h2 id="{key}">{escape(engine.target)}</h2>{pill(engine.verdict)}'
    parts = [f'<section aria-labelledby="{key}"><div class="title">{title}</div>']
    if engine.reason is not None:
        parts.append(f"<p>{escape(engine.reason)}</p>")
    if engine.measures:
        parts.append(_cards(engine.measures))
    parts += [_charts(engine), _measures(engine.measures), _worst(engine)]
    parts += [_rungs(engine.rungs), build_section(engine), _circumstances(engine), "</section>"]
    return "".join(parts)


def _cards(measures: Sequence[Measure]) -> str:
    judged = [m for m in measures if m.threshold is not None and m.value is not None]
    agreement = [m for m in judged if m.name not in ALONE][: CARDS - 2]
    alone = [m for m in judged if m.name in ("non_finite", "padding_difference")]
    cards = "".join(
        f'<div class="card{"" if m.passed else " failed"}"><b>{number(m.value)}</b>'
        f"<span>{escape(m.meaning)}</span></div>"
        for m in (*agreement, *alone)
    )
    return f'<div class="cards">{cards}</div>'


def _charts(engine: EngineReport) -> str:
    limit, distance, key = _limit(engine), engine.distance or "distance", engine.target
    figures = []
    if engine.histogram is not None:
        said = f"How far the texts are off ({distance}); further left is closer."
        figures.append(
            _figure("All texts", histogram_chart(f"texts-{key}", engine.histogram, distance, limit), said)
        )
    if engine.points:
        said = "One dot a text. Errors that grow with the length would climb to the right."
        figures.append(
            _figure("Error by length", length_chart(f"length-{key}", engine.points, distance, limit), said)
        )
    if engine.drift is not None:
        first = engine.drift.first
        said = "In torch, with the engine's storage: "
        said += "no layer drifts." if first is None else f"the first layer to drift is {first}."
        figures.append(_figure("Drift by layer", drift_chart(f"drift-{key}", engine.drift), said))
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _limit(engine: EngineReport) -> float | None:
    """The largest distance that passes, from the threshold that judges it."""
    for m in engine.measures:
        if m.threshold is None:
            continue
        if m.name == "cosine_min" and m.threshold.at_least is not None:
            return 1 - m.threshold.at_least
        if m.name in ("probability_error", "score_error"):
            return m.threshold.at_most
    return None


def _figure(title: str, chart: str, said: str) -> str:
    return f"<figure><strong>{escape(title)}</strong>{chart}<figcaption>{escape(said)}</figcaption></figure>"


def _measures(measures: Sequence[Measure]) -> str:
    against = [m for m in measures if m.name not in ALONE]
    alone = [m for m in measures if m.name in ALONE]
    return _measure_table("Against the reference", against) + _measure_table("The engine by itself", alone)


def _measure_table(title: str, measures: Sequence[Measure]) -> str:
    if not measures:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(m.meaning)}</th><td class="number">{number(m.value)}</td>'
        f'<td class="number soft">{bound(m.threshold)}</td><td>{_mark(m.passed)}</td></tr>'
        for m in measures
    )
    return (
        f'<h3>{title}</h3><div class="wide"><table class="measures"><thead><tr><th scope="col">measure</th>'
        '<th scope="col" class="number">value</th><th scope="col" class="number">needs</th>'
        f'<th scope="col">holds</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _worst(engine: EngineReport) -> str:
    if not engine.worst:
        return ""
    distance = escape(engine.distance or "distance")
    rows = "".join(_worst_row(row, distance) for row in engine.worst)
    return (
        '<h3>Texts that are furthest off</h3><div class="wide"><table class="worst"><thead><tr>'
        f'<th scope="col">text</th><th scope="col">kind</th><th scope="col" class="number">tokens</th>'
        f'<th scope="col" class="number">{distance}</th><th scope="col" class="number">largest error</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _worst_row(row: TextRow, distance: str) -> str:
    pair = "" if row.pair is None else f"<br><bdi>{visible(row.pair)}</bdi>"
    prompt = "" if row.prompt is None else f' <span class="soft">(prompt {escape(row.prompt)})</span>'
    far = "NaN or Inf" if row.distance is None else number(row.distance)
    return (
        f'<tr><td class="text"><bdi>{visible(row.text)}</bdi>{pair}{prompt}</td>'
        f'<td class="kind soft">{escape(row.kind)}</td><td class="number" data-name="tokens">{row.tokens}</td>'
        f'<td class="number" data-name="{distance}">{far}</td>'
        f'<td class="number" data-name="largest error">{number(row.error)}</td></tr>'
    )


def visible(text: str) -> str:
    """Escaped, with control characters shown as symbols instead of acted upon."""
    shown = "".join(_symbol(c) for c in text)
    return escape(shown)


def _symbol(c: str) -> str:
    if ord(c) < 0x20:
        return chr(0x2400 + ord(c))
    if c == "\x7f":
        return "\u2421"
    if 0x80 <= ord(c) < 0xA0 or c in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069":
        return f"[U+{ord(c):04X}]"
    return c


def _rungs(rungs: Sequence[Rung]) -> str:
    if not rungs:
        return ""
    items = "".join(
        f'<div class="title"><span>{escape(rung.name)}</span>{pill(rung.verdict)}</div>'
        f'<p class="small soft">{escape(_few(rung.measures))}</p>'
        for rung in rungs
    )
    return f"<h3>Rungs of proof below</h3>{items}"


def _few(measures: Iterable[Measure]) -> str:
    return "; ".join(f"{m.meaning} {number(m.value)}" for m in measures if m.threshold is not None)


def _circumstances(engine: EngineReport) -> str:
    facts = [("recorded", engine.created), ("precision", engine.precision), ("device", engine.device)]
    facts.append(("versions", _versions(engine.versions)))
    if engine.reference is not None:
        reference = (
            f"{engine.reference.name} on {engine.reference.device} ({_versions(engine.reference.versions)})"
        )
        facts.append(("reference", reference))
    if engine.texts is not None:
        t = engine.texts
        said = f"{t.source}: {t.count} texts, {t.tokens} tokens, longest {t.longest}; SHA-256 {t.sha256}"
        facts.append(("texts", said))
    rows = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts if value)
    return f"<h3>Circumstances</h3><dl>{rows}</dl>"


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _ranges(ranges: Sequence[RangeRow], decisions: Sequence[str]) -> str:
    folded = any(row.after is not None for row in ranges)
    key = '<span class="key hollow">in fp32</span>'
    if folded:
        key = '<span class="key hollow">before folding</span> <span class="key">after folding</span>'
    chart = _figure(
        "Largest magnitude of every stored value",
        range_chart("range-audit", ranges),
        "Past the line FP16 overflows.",
    )
    return (
        '<section aria-labelledby="ranges"><h2 id="ranges">Range audit</h2>'
        f'<p class="small soft">{key}</p><div class="charts">{chart}{_largest(ranges, folded)}</div>'
        f"{_decisions(decisions)}</section>"
    )


def _decisions(decisions: Sequence[str]) -> str:
    if not decisions:
        return "<p>The policy of FP16 engines has no scale and no wider unit.</p>"
    shown = "".join(f"<li>{escape(decision)}</li>" for decision in decisions[:MANY])
    more = f"<li>… and {len(decisions) - MANY} more</li>" if len(decisions) > MANY else ""
    return f'<h3>What the policy of FP16 engines does about it</h3><ul class="small">{shown}{more}</ul>'


def _largest(ranges: Sequence[RangeRow], folded: bool) -> str:
    """The sites with the largest magnitudes, as a table."""
    top = sorted(ranges, key=lambda row: -row.before)[:LARGEST]
    names = ["before", "after", "of FP16, before"] if folded else ["largest", "of FP16"]
    heads = "".join(f'<th scope="col" class="number">{name}</th>' for name in names)
    rows = "".join(_range_row(row, folded) for row in top)
    return (
        '<div class="wide"><table><caption>Largest sites</caption><thead><tr><th scope="col">site</th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _range_row(row: RangeRow, folded: bool) -> str:
    values = [number(row.before), *([number(row.after)] if folded else []), f"{row.before / FP16_MAX:.1%}"]
    cells = "".join(f'<td class="number">{value}</td>' for value in values)
    return f'<tr><th scope="row"><code>{escape(row.site)}</code></th>{cells}</tr>'


def pill(verdict: Verdict) -> str:
    """A verdict in its colours, as HTML."""
    return f'<span class="pill {CLASS[verdict]}">{SAID[verdict]}</span>'


def _mark(passed: bool | None) -> str:
    if passed is None:
        return ""
    return '<span class="good">✓ yes</span>' if passed else '<span class="bad">✗ no</span>'
