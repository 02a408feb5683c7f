"""The server's page in a real browser: it works by keyboard, fits a phone, says nothing on the console."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tests.runtime.serving import serving
from tests.runtime.tiny import write_bundle

from bei.runtime.model import load
from bei.runtime.service import Service

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
browsed = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)
LABELS = {
    "embed": (),
    "embed-tokens": (),
    "rerank": ("relevance",),
    "classify": ("calm", "angry", "odd"),
    "token-classify": ("O", "B-PER"),
}
PATIENT_MS = 30_000


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bundle of every task behind one server."""
    base = tmp_path_factory.mktemp("page")
    models = [load(write_bundle(base / task, task=task, labels=labels)) for task, labels in LABELS.items()]  # type: ignore[arg-type]
    services = [Service(model, name=model.manifest.head.task, max_queue_tokens=1 << 20) for model in models]
    with serving(*services) as url:
        yield url
    for model in models:
        model.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def said() -> list[str]:
    """What the page wrote on the console, errors it did not catch included."""
    return []


@pytest.fixture
def page(browser: Browser, url: str, said: list[str]) -> Iterator[Page]:
    with browser.new_context(viewport={"width": 1100, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENT_MS)
        expect.set_options(timeout=PATIENT_MS)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        expect(page.locator("#models article")).to_have_count(len(LABELS))
        yield page


def test_who_does_not_ask_for_html_gets_the_health(url: str) -> None:
    answer = httpx.get(url, headers={"accept": "*/*"})
    assert (answer.status_code, answer.content) == (200, b"")
    page = httpx.get(url, headers={"accept": "text/html,*/*"})
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]


@browsed
def test_by_keyboard_alone_from_the_top_to_a_heat_map(page: Page, said: list[str]) -> None:
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator("#model")).to_be_focused()
    for _ in range(5):
        if page.evaluate("document.activeElement.id") == "texts":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("hello\nhello\nworld")
    page.keyboard.press("Control+Enter")
    cells = page.locator("#result td")
    expect(cells).to_have_count(10)  # the corner, and three by three
    assert cells.nth(2).inner_text() == "1.00"
    expect(page.locator("#message")).to_contain_text("3 texts")
    assert said == []


@browsed
@pytest.mark.parametrize(
    ("task", "wanted", "count"),
    [
        ("embed-tokens", "tbody tr", 16),
        ("rerank", "ol li", 3),
        ("classify", "ul li", 6),
        ("token-classify", "p.text", 1),
    ],
)
def test_the_other_tasks(page: Page, said: list[str], task: str, wanted: str, count: int) -> None:
    page.select_option("#model", task)
    page.click("#run")
    expect(page.locator(f"#result {wanted}")).to_have_count(count)
    assert said == []


@browsed
def test_what_the_server_refuses_is_shown(page: Page) -> None:
    page.fill("#texts", "poison")  # gives NaN
    page.click("#run")
    expect(page.locator("#message")).to_contain_text("500")
    expect(page.locator("#message")).to_have_class("bad")
    page.fill("#texts", " ")
    page.click("#run")
    expect(page.locator("#message")).to_have_text("Give at least one text.")


@browsed
def test_texts_are_never_markup(page: Page, said: list[str]) -> None:
    page.fill("#texts", "<img src=x onerror=alert(1)>\n<b>hello</b>")
    page.click("#run")
    expect(page.locator("#result tbody th").first).to_contain_text("<img")
    assert page.locator("#result img, #result b").count() == 0
    assert said == []


@browsed
def test_live_figures_move(page: Page, url: str, said: list[str]) -> None:
    expect(page.locator("#live .card")).to_have_count(6)
    expect(page.locator("#state")).to_have_text("ready")
    with httpx.Client(base_url=url) as client:
        tile = page.locator("#live .card b").first
        for _ in range(200):
            client.post("/v1/embeddings", json={"input": "hello", "model": "embed"}).raise_for_status()
            if tile.inner_text() not in ("0", "–"):
                break
            page.wait_for_timeout(50)
    assert tile.inner_text() != "0"
    assert said == []


@browsed
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits(browser: Browser, url: str, width: int, scheme: str, tmp_path: Path) -> None:
    with browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme) as context:  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(url)
        page.locator("#models article").first.wait_for(timeout=PATIENT_MS)
        page.click("#run")
        page.locator("#result table").wait_for(timeout=PATIENT_MS)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ink, paper = (
            page.evaluate(f"getComputedStyle(document.body).{what}") for what in ("color", "backgroundColor")
        )
        assert (brightness(ink) > brightness(paper)) == (scheme == "dark")


def brightness(colour: str) -> float:
    """Of an "rgb(r, g, b)"."""
    return sum(float(part) for part in colour[4:-1].split(","))
