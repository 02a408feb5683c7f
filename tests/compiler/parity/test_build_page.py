"""How an engine was built, on the page: a table, two pictures, nothing for engines without evidence."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

from bei.compiler.parity.build_page import build_section
from bei.compiler.parity.report import EngineReport
from tests.runtime.test_evidence import EVIDENCE


def report(**changes: object) -> EngineReport:
    fields = {
        "target": "tensorrt-<sm89>",
        "precision": "fp16",
        "verdict": "not run",
        "created": "",
        **changes,
    }
    return EngineReport(**fields)  # type: ignore[arg-type]


def test_a_row_a_layer_with_what_was_lost() -> None:
    page = build_section(report(evidence=EVIDENCE))
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</th>(.*?)</tr>", page)
    assert [name for name, _ in rows] == ["0", "1", "2", "10", "other"]
    assert "q: library&#x27;s choice" in rows[1][1]
    assert "not fused" in rows[2][1]
    assert "2 of 3 attentions fused" in page


def test_equal_layers_share_a_row() -> None:
    same = {
        "attention_layers": 4,
        "fused_attention": 4,
        "kernels": 30,
        "kernels_per_layer": [9, 9, 9],
        "gemm_accumulation": {f"layers.{i}.q": "fp32" for i in range(4)},
        "attention_accumulation": {f"layers.{i}.attention": ["fp32", "fp32"] for i in range(4)},
        "plan_bytes": 1,
    }
    page = build_section(report(evidence=same))
    assert re.findall(r"<tr><th scope=\"row\">(.*?)</th>", page) == ["0 – 2", "3"]


def test_the_pictures_are_drawings_that_say_what_they_show() -> None:
    page = build_section(report(evidence=EVIDENCE))
    bars, cells = (ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page))
    assert sum(e.get("class") == "bar" for e in bars.iter()) == 2
    kinds = [e.get("class", "") for e in cells.iter() if e.get("class", "").startswith("cell")]
    assert kinds.count("cell fp32") == 6
    assert kinds.count("cell other") == 2
    assert kinds.count("cell unread") == 3  # layer 10: its product, and both of its attention
    assert [e.text for e in cells if e.tag == "desc"] == ["11 products in 5 layers; 5 of them not in fp32"]
    for e in (*bars.iter("rect"), *cells.iter("rect")):
        assert 0 <= float(e.attrib["x"]) <= 400
        assert float(e.attrib["width"]) > 0
        assert float(e.attrib["height"]) > 0


def test_names_are_escaped_and_ids_are_unique() -> None:
    page = build_section(report(evidence=EVIDENCE))
    assert "<sm89>" not in page
    found: list[str] = []

    class Ids(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend(value or "" for name, value in attrs if name == "id")

    Ids().feed(page)
    assert len(found) == len(set(found)) == 4


def test_an_engine_without_such_evidence_has_no_section() -> None:
    assert build_section(report(evidence={"nodes": 203})) == ""
