"""The README's table of models is made from the matrix."""

import pytest
from benchmarks.zoo_table import END, START, rows, updated

from bei.compiler.parity.matrix import Matrix, Row


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
