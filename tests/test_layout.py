"""The four folders are imported as bei.* through links and are never top-level packages (STYLE: import layout)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("adapters", "compiler", "kernels", "runtime")
FORBIDDEN = {
    "adapters": ("bei.compiler", "bei.runtime", "bei.kernels", "torch", "transformers"),
    "runtime": ("bei.compiler", "bei.adapters", "torch", "transformers"),
    "kernels": ("bei.compiler", "bei.runtime", "bei.adapters", "transformers"),
}


@pytest.mark.parametrize("part", PARTS)
def test_part_is_linked_and_is_not_a_top_level_package(part: str) -> None:
    assert (ROOT / "src/bei" / part).resolve() == ROOT / part
    assert not (ROOT / part / "__init__.py").exists()


def imported(path: Path) -> set[str]:
    """Every module a file names in an import statement."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("part", sorted(FORBIDDEN))
def test_dependencies_point_one_way(part: str) -> None:
    for path in sorted((ROOT / part).rglob("*.py")):
        for name in imported(path):
            bad = [root for root in FORBIDDEN[part] if name == root or name.startswith(f"{root}.")]
            assert not bad, f"{path.relative_to(ROOT)} imports {name}"


def test_compiling_needs_no_torch() -> None:
    """Everything between a checkpoint and an engine imports without torch and transformers."""
    code = (
        "import sys; import bei.compiler.build, bei.compiler.cli; "
        "print(sorted(m for m in ('torch', 'transformers', 'sentence_transformers') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
