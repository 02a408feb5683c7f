"""The README's table of models is made from the matrix."""

from pathlib import Path

import msgspec
import pytest
from benchmarks.record import RESULTS, table
from benchmarks.zoo_table import END, README, START, rows, updated

from bei.compiler.parity.matrix import Matrix, Row
from bei.compiler.zoo.zoo import load_zoo

ROOT = Path(__file__).parents[1]


def test_rows_and_markers() -> None:
    embed = Row(
        repo="a/b",
        adapter="bert",
        task="embed",
        weights="real",
        verdict="passed",
        cosine=1 - 4e-12,
        seconds=1,
    )
    broken = Row(repo="c/d", adapter="bert", task="rerank", weights=None, verdict="failed", seconds=1)
    found = rows(Matrix(bei_version="0", target="onnxruntime-cpu", rows=(embed, broken)))
    assert [row["worst text"] for row in found] == ["1 − cos 4e-12", ""]
    assert updated(f"x\n{START}\nold\n{END}\ny", "new") == f"x\n{START}\n\nnew\n\n{END}\ny"
    with pytest.raises(ValueError, match="zoo-table"):
        updated("no markers", "new")


def test_the_readme_shows_the_last_matrix_and_nothing_is_left_out() -> None:
    """After `bei-parity --zoo model_zoo.yaml --json benchmarks/results/zoo_parity.json`: python -m benchmarks.zoo_table --update."""
    matrix = msgspec.json.decode((RESULTS / "zoo_parity.json").read_bytes(), type=Matrix)
    entries = load_zoo(ROOT / "model_zoo.yaml")
    assert len(entries) == 41
    assert [(row.repo, row.adapter, row.task) for row in matrix.rows] == [
        (entry.repo, entry.adapter, entry.task) for entry in entries
    ]
    assert matrix.passed
    readme = README.read_text(encoding="utf-8")
    assert updated(readme, table(rows(matrix))) == readme
