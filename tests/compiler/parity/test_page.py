"""parity.html in a real browser: no console errors, nothing fetched, readable at phone width, light and dark."""

import shutil
import subprocess
from pathlib import Path

import pytest

from bei.compiler.cli import main
from tests.compiler.checkpoint import tiny

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-file-access-from-files",
    "--enable-logging=stderr",
    "--v=0",
]

WIDE = {"hidden_size": 64, "intermediate_size": 128}
"""Heads of 32, which TensorRT fuses."""

FRAME = """<!doctype html><iframe id=page src="parity.html" width="{width}" height="800" style="border:0"></iframe>
<script>
onload = () => {{
  const page = document.getElementById("page").contentDocument;
  const style = page.defaultView.getComputedStyle(page.body);
  const marks = page.querySelectorAll("svg circle, svg rect, svg path, svg polyline").length;
  document.body.textContent = ["width", page.documentElement.scrollWidth, "colour", style.color,
    "marks", marks, "title", page.title, "end"].join("|");
}};
</script>
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a certificate: ONNX Runtime measured, and an FP16 engine that brings a range audit."""
    base = tmp_path_factory.mktemp("page")
    checkpoint = tiny.write(base / "checkpoint", tiny.files(config=WIDE))
    targets = ("--target", "onnxruntime-cpu", "--target", "tensorrt-rtx-sm89")
    assert main(["--repo", str(checkpoint), "--out", str(base / "tiny.bundle"), *targets]) == 0
    return base / "tiny.bundle"


def browse(folder: Path, profile: Path, width: int, *more: str) -> tuple[dict[str, str], str]:
    """What the page measures of itself inside a frame of that width, and what the browser logged."""
    assert CHROMIUM is not None
    (folder / "frame.html").write_text(FRAME.format(width=width))
    done = subprocess.run(
        [CHROMIUM, *FLAGS, *more, f"--user-data-dir={profile}", "--virtual-time-budget=4000", "--dump-dom",
         (folder / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    parts = done.stdout[done.stdout.index("width|") :].split("|end")[0].split("|")
    return dict(zip(parts[::2], parts[1::2], strict=True)), done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_and_is_silent(folder: Path, tmp_path: Path, width: int) -> None:
    seen, log = browse(folder, tmp_path, width)
    assert int(seen["width"]) <= width
    assert int(seen["marks"]) > 20
    assert "tiny" in seen["title"]
    assert "CONSOLE" not in log


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
def test_dark_is_another_colour(folder: Path, tmp_path: Path) -> None:
    light, _ = browse(folder, tmp_path / "light", 800)
    dark, _ = browse(folder, tmp_path / "dark", 800, "--blink-settings=preferredColorScheme=0")
    assert light["colour"] != dark["colour"]
