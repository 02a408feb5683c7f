"""Serving pulls in no training or compile stack: a fresh interpreter shows what an import costs."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.runtime.tiny import write_bundle

import bei

HEAVY = (
    "torch",
    "transformers",
    "sentence_transformers",
    "onnx",
    "onnx_ir",
    "huggingface_hub",
    "safetensors",
    "rich",
    "bei.compiler",
    "bei.adapters",
)
SERVING = ("starlette", "uvicorn", "asyncio")


def loaded(code: str, names: tuple[str, ...]) -> list[str]:
    """Which of ``names`` are in sys.modules after ``code`` ran in a fresh interpreter."""
    source = str(Path(bei.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {source!r}); {code}; print(*[n for n in {names!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    "module",
    [
        "bei.runtime.http.app",
        "bei.runtime.cli",
        "bei.runtime.inspect_cli",
        "bei.runtime.corpus.run",
        "bei.runtime.capacity.cli",
    ],
)
def test_the_server_is_light(module: str) -> None:
    assert loaded(f"import {module}", (*HEAVY, "ray")) == []


def test_a_replica_on_ray_is_light() -> None:
    pytest.importorskip("ray.serve", reason="needs ray (extra: ray)")
    assert loaded("import bei.runtime.ray_serve", HEAVY) == []


def test_import_bei_costs_nothing() -> None:
    assert loaded("import bei", (*HEAVY, *SERVING, "numpy", "onnxruntime", "tokenizers", "msgspec")) == []


def test_loading_and_encoding_is_light(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b")
    assert loaded(f"import bei; bei.load({str(folder)!r}).encode(['a'])", (*HEAVY, *SERVING)) == []


def test_the_check_can_fail() -> None:
    assert loaded("import rich", HEAVY) == ["rich"]
