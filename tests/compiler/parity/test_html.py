"""The page: well-formed, self-contained, accessible, and showing what the report says."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise

import msgspec
import pytest

from bei.compiler.parity.gate import Threshold
from bei.compiler.parity.html import render, visible
from bei.compiler.parity.numbers import bound, number
from bei.compiler.parity.report import FP16_MAX, ParityReport

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Elements with their attributes and text; fails on tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def words(self) -> str:
        return " ".join(data for tag, data in self.text if tag != "style")


@pytest.fixture(scope="module")
def html(rich_report: ParityReport) -> str:
    return render(rich_report)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_one_file_that_loads_nothing(html: str, page: Page) -> None:
    assert page.all("script") == page.all("img") == page.all("iframe") == []
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    policies = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert "@import" not in html
    assert not re.search(r"url\(|(src|href|action)=[\"']?(https?:)?//", html)


def test_made_for_phones_light_and_dark(html: str, page: Page) -> None:
    named = {meta["name"]: meta["content"] for meta in page.all("meta") if "name" in meta}
    assert named["viewport"] == "width=device-width, initial-scale=1"
    assert named["color-scheme"] == "light dark"
    assert "@media (prefers-color-scheme: dark)" in html
    assert "@media (max-width: 36rem)" in html
    assert page.all("html") == [{"lang": "en"}]
    style = html[html.index("<style>") : html.index("</style>")]
    assert set(re.findall(r"var\((--\w[\w-]*)\)", style)) <= set(re.findall(r"(--\w[\w-]*):", style))


def test_classes_used_are_styled(html: str, page: Page) -> None:
    style = html[html.index("<style>") : html.index("</style>")]
    used = {name for _, attributes in page.elements for name in attributes.get("class", "").split()}
    assert {name for name in used if not re.search(rf"\.{name}\b", style)} <= {"tick"}


def test_ids_are_unique_and_labels_point_at_them(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        assert set(attributes.get("aria-labelledby", "").split()) <= set(ids)


def test_headings_and_tables_are_marked_up(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))


def test_charts_say_what_they_show_and_are_well_formed(html: str) -> None:
    charts = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]
    assert len(charts) == 6  # two for each engine that ran, drift, ranges
    for chart in charts:
        assert chart.get("role") == "img"
        title, description = chart[0], chart[1]
        assert title.tag == "title"
        assert title.text
        assert description.tag == "desc"
        assert description.text
        for element in chart.iter():
            for name in ("x", "y", "cx", "cy", "x1", "x2", "y1", "y2", "width", "height"):
                if name in element.attrib:
                    assert -1 <= float(element.attrib[name]) <= 401


def test_everything_in_the_report_is_on_the_page(rich_report: ParityReport, page: Page) -> None:
    words = page.words()
    for engine in rich_report.engines:
        assert engine.target in words
        for measure in engine.measures:
            assert measure.meaning in words
            assert number(measure.value) in words
        for rung in engine.rungs:
            assert rung.name in words
    for wanted in (
        "a <model>",
        "c0ffee",
        "no GPU <here>",
        "layers.3",
        "NaN or Inf",
        "FP16 limit 65504",
        "layers.5.v",
    ):
        assert wanted in words
    assert (words.count("✓ passed"), words.count("not run")) == (3, 2)


def test_every_bar_dot_and_limit_is_drawn(rich_report: ParityReport, html: str) -> None:
    passed, failed, _ = rich_report.engines
    assert passed.histogram is not None
    assert failed.histogram is not None
    bars = sum(
        n > 0 for engine in (passed, failed) for n in (engine.histogram.counts if engine.histogram else ())
    )
    assert html.count('class="bar"') == bars
    dots = len(passed.points) + len(failed.points) + 7
    assert len(re.findall(r'class="dot(?: over)?"', html)) == dots
    assert html.count('class="dot over"') == sum(p.distance > 1e-4 for p in failed.points) + 3
    assert len(re.findall(r"<line[^>]*class=\"limit\"", html)) == 6
    assert html.count('class="before over"') == sum(row.before > FP16_MAX for row in rich_report.ranges) == 1


def test_texts_cannot_change_the_page(html: str, page: Page) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "$body ${body}" in page.words()
    for forbidden in ("\u202e", "\x01", "\x7f"):
        assert forbidden not in html
    assert "[U+202E]␁␡" in page.words()


def test_the_same_report_gives_the_same_page(rich_report: ParityReport, html: str) -> None:
    assert render(rich_report) == html


def test_visible() -> None:
    assert visible("a\tb\n<") == "a␉b␊&lt;"


def test_a_report_without_extras_has_no_empty_sections(rich_report: ParityReport) -> None:
    idle = rich_report.engines[2]
    bare = Page(render(msgspec.structs.replace(rich_report, engines=(idle,), ranges=())))
    assert bare.all("svg") == bare.all("figure") == []
    assert "Range audit" not in bare.words()
    assert "furthest off" not in bare.words()


def test_a_single_text_and_a_perfect_engine_can_be_drawn(rich_report: ParityReport) -> None:
    passed = rich_report.engines[0]
    assert passed.histogram is not None
    one = msgspec.structs.replace(
        passed,
        histogram=msgspec.structs.replace(passed.histogram, edges=(-16.0, -15.5), counts=(1,)),
        points=(msgspec.structs.replace(passed.points[0], tokens=1, distance=0.0),),
        measures=tuple(msgspec.structs.replace(m, threshold=None) for m in passed.measures),
    )
    Page(render(msgspec.structs.replace(rich_report, engines=(one,))))


def test_ranges_without_folding(rich_report: ParityReport) -> None:
    rows = tuple(msgspec.structs.replace(row, after=None) for row in rich_report.ranges)
    html = render(msgspec.structs.replace(rich_report, ranges=rows))
    assert "after folding" not in html
    assert "in fp32" in html
    assert ">after<" not in html
    assert ">after<" in render(rich_report)


def test_the_policys_decisions_are_listed(rich_report: ParityReport) -> None:
    words = Page(render(rich_report)).words()
    assert "layers.0.v × 2^-1: <reason> 0" in words
    assert "<reason> 39" in words and "<reason> 40" not in words and "… and 10 more" in words
    none = msgspec.structs.replace(rich_report, decisions=())
    assert "has no scale and no wider unit" in Page(render(none)).words()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (1.0, "1"),
        (175.0, "175"),
        (0.99987, "0.99987"),
        (0.999949, "0.999949"),
        (1 - 8.1e-13, "1 − 8.1e-13"),
        (0.5, "0.5"),
        (0.0349, "0.0349"),
        (3.14e-7, "3.1e-07"),
        (-0.25, "-0.25"),
        (1.05, "1.05"),
        (223000.5, "2.23e+05"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_cosine_is_never_rounded_up_to_one() -> None:
    for exponent in range(1, 16):
        assert number(1 - 10.0**-exponent) != "1"


def test_bounds() -> None:
    assert bound(Threshold(at_least=0.99999)) == "≥ 0.99999"
    assert bound(Threshold(at_most=1e-4)) == "≤ 0.0001"
    assert bound(None) == bound(Threshold()) == ""
