"""The output as it is, in the tools that people load vectors into."""

from pathlib import Path

import duckdb
import faiss
import lancedb
import numpy as np
import polars
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from tests.runtime.corpus.jobs import read, texts, write_jsonl
from tests.runtime.tiny import DIM

from bei.runtime.corpus.cli import main

COUNT = 300


@pytest.fixture(scope="module", params=["float32", "float16", "int8"])
def out(request: pytest.FixtureRequest, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four parts, with text ids."""
    folder = tmp_path_factory.mktemp("readers")
    corpus = write_jsonl(
        folder / "a.jsonl", [{"text": t, "id": f"doc-{i}"} for i, t in enumerate(texts(COUNT))]
    )
    flags = ["--id-column", "id", "--shard-rows", "90", "--dtype", request.param]
    assert main([str(bundle), str(corpus), "--out", str(folder / "o"), *flags]) == 0
    return folder / "o"


def vectors(out: Path) -> np.ndarray:
    return np.stack(read(out).column("vector").to_pylist())


def test_polars(out: Path) -> None:
    frame = polars.read_parquet(out / "part-*.parquet")
    assert frame["id"].to_list() == [f"doc-{index}" for index in range(COUNT)]
    assert frame.schema["vector"] == polars.Array(frame.schema["vector"].inner, DIM)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(frame["vector"].to_numpy(), vectors(out))


def test_duckdb(out: Path) -> None:
    found = duckdb.sql(f"select id, vector from '{out}/part-*.parquet' order by filename, file_row_number")
    assert found is not None
    rows = found.fetchall()
    assert [row[0] for row in rows] == [f"doc-{index}" for index in range(COUNT)]
    np.testing.assert_array_equal(np.array([row[1] for row in rows]), vectors(out))


def test_lancedb(out: Path, tmp_path: Path) -> None:
    data = pyarrow.dataset.dataset(sorted(map(str, out.glob("part-*.parquet"))))
    if data.schema.field("vector").type.value_type.bit_width == 8:
        pytest.skip("LanceDB searches float vectors")
    table = lancedb.connect(tmp_path).create_table("docs", data.to_table())
    wanted = vectors(out)[7].astype(np.float32)
    (best,) = table.search(wanted, vector_column_name="vector").limit(1).to_list()
    np.testing.assert_allclose(np.array(best["vector"], np.float32), wanted)
    assert len(table) == COUNT


def test_faiss(out: Path) -> None:
    index = faiss.IndexFlatIP(DIM)
    for part in sorted(out.glob("part-*.parquet")):
        flat = pq.read_table(part).column("vector").combine_chunks().flatten()
        index.add(flat.to_numpy().reshape(-1, DIM).astype(np.float32))
    assert index.ntotal == COUNT
    wanted = vectors(out)[:5].astype(np.float32)
    scores, _ = index.search(wanted, 1)
    assert (scores[:, 0] >= (wanted**2).sum(axis=1) - 1e-3).all()
