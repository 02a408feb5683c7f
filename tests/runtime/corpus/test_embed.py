"""`bei-embed` from command line to files: what is written is what the model gives, in the order of the input."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sentence_transformers.util import quantize_embeddings
from tests.runtime.corpus.jobs import failures, read, run, texts, write_jsonl
from tests.runtime.tiny import DIM, write_bundle

import bei
from bei.runtime.corpus import worker
from bei.runtime.quantize import int8_by_column, ranges_of, signed_bits

TEXTS = texts(500)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``TEXTS`` with ids, and between them rows that cannot be processed."""
    rows: list[dict[str, object]] = [{"key": f"k{index}", "text": text} for index, text in enumerate(TEXTS)]
    rows[100:100] = [{"key": "null", "text": None}, {"key": "nan", "text": "a poison b"}]
    rows[300:300] = [{"key": "number", "text": 7}]
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "a.jsonl", rows)


def test_vectors_are_the_models_in_the_order_of_the_input(
    bundle: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, _ = run(
        capsys, bundle, corpus, "--out", tmp_path, "--id-column", "key", "--shard-rows", 64, "--json"
    )
    assert code == 1
    table = read(tmp_path)
    assert table.column("id").to_pylist() == [f"k{index}" for index in range(500)]
    with bei.load(bundle) as model:
        expected = model.encode(TEXTS)
    np.testing.assert_allclose(np.stack(table.column("vector").to_pylist()), expected, atol=1e-6)
    assert str(table.schema.field("vector").type) == f"fixed_size_list<element: float not null>[{DIM}]"
    failed = failures(tmp_path)
    assert [(row["id"], row["row"]) for row in failed] == [("null", 100), ("nan", 101), ("number", 300)]
    assert [row["reason"].split(" for")[0] for row in failed] == [
        "text is null",
        "the engine gave NaN or infinity",
        "text is int, need a text",
    ]
    assert {row["file"] for row in failed} == {str(corpus)}
    summary = json.loads(said)
    assert (summary["rows"], summary["written"], summary["failed"], summary["shards"]) == (503, 500, 3, 8)
    assert summary["tokens_per_second"] > 0


def test_without_ids_rows_are_numbered_as_they_lie_in_the_input(
    bundle: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, bundle, corpus, corpus.parent / "a.jsonl*", "--out", tmp_path / "no")[0] == 2
    code, said, _ = run(capsys, bundle, corpus, "--out", tmp_path, "--shard-rows", 64)
    assert (code, "3 rows could not be processed" in said) == (1, True)
    numbers = [number for number in range(503) if number not in (100, 101, 300)]
    assert read(tmp_path).column("id").to_pylist() == numbers


@pytest.mark.parametrize("dtype", ["float16", "int8", "binary"])
def test_smaller_vectors_are_those_of_sentence_transformers(
    dtype: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    arguments = ("--dtype", dtype, "--dimensions", 4, "--prompt-name", "query", "--shard-rows", 64)
    assert run(capsys, bundle, corpus, "--out", tmp_path / "out", *arguments)[0] == 0
    with bei.load(bundle) as model:
        vectors = model.encode(TEXTS, prompt_name="query", dimensions=4)
    found = np.stack(read(tmp_path / "out").column("vector").to_pylist())
    if dtype == "float16":
        np.testing.assert_array_equal(found, vectors.astype(np.float16))
        return
    ranges = json.loads((tmp_path / "out/job.json").read_text())["ranges"]
    expected = quantize_embeddings(
        vectors,
        dtype,  # type: ignore[arg-type]
        ranges=np.array(ranges, np.float32).T if dtype == "int8" else None,
    )
    assert np.abs(found.astype(int) - np.asarray(expected, int)).max() <= (dtype == "int8")  # batches differ
    if dtype == "int8":
        stored = pq.read_schema(tmp_path / "out/part-000003.parquet").metadata[b"bei.int8_ranges"]
        assert json.loads(stored) == ranges
        low, high = np.array(ranges).T
        assert (low >= vectors.min(axis=0) - 1e-6).all() and (high <= vectors.max(axis=0) + 1e-6).all()


@pytest.mark.parametrize("shape", [(50, 16), (7, 13), (2, 8)])
def test_quantising_is_sentence_transformers_to_the_bit(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    x[:, 3] = 0.25  # a dimension without a range
    ranges = ranges_of(x[:2])
    theirs = quantize_embeddings(x, "int8", ranges=np.array(ranges, np.float32).T)
    np.testing.assert_array_equal(int8_by_column(x, ranges), theirs)
    np.testing.assert_array_equal(signed_bits(x), quantize_embeddings(x, "binary"))


def test_rerank_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "b", task="rerank", labels=["score"])
    rows: list[dict[str, object]] = [
        {"q": a, "d": b} for a, b in zip(texts(40, 1), texts(40, 2), strict=True)
    ]
    rows.insert(7, {"q": "a", "d": ""})
    rows.insert(9, {"q": None, "d": "a"})
    corpus = write_jsonl(tmp_path / "a.jsonl", rows)
    code, *_ = run(capsys, bundle, corpus, "--out", tmp_path / "o", "--column", "q", "--column", "d")
    assert code == 1
    table = read(tmp_path / "o")
    good = [row for row in rows if row["q"] is not None]
    with bei.load(bundle) as model:
        expected = [model.rerank(str(row["q"]), [str(row["d"])])[0] for row in good]
    np.testing.assert_allclose(table.column("score"), expected, atol=1e-6)
    assert [row["reason"] for row in failures(tmp_path / "o")] == ["q is null"]


@pytest.mark.parametrize("pairs", [False, True])
def test_classify(pairs: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = ["red", "green", "blue"]
    bundle = write_bundle(tmp_path / "b", task="classify", labels=labels)
    first, second = texts(30, 1), texts(30, 2)
    corpus = write_jsonl(
        tmp_path / "a.jsonl", [{"text": a, "pair": b} for a, b in zip(first, second, strict=True)]
    )
    columns = ("--column", "text", "--column", "pair") if pairs else ()
    assert run(capsys, bundle, corpus, "--out", tmp_path / "o", *columns)[0] == 0
    table = read(tmp_path / "o")
    with bei.load(bundle) as model:
        expected = model.predict(list(zip(first, second, strict=True)) if pairs else first)
    np.testing.assert_allclose(np.stack(table.column("scores").to_pylist()), expected, atol=1e-6)
    assert table.column("label").to_pylist() == [labels[best] for best in expected.argmax(axis=1)]
    np.testing.assert_allclose(table.column("score"), expected.max(axis=1), atol=1e-6)
    stored = pq.read_schema(tmp_path / "o/part-000000.parquet").metadata[b"bei.labels"]
    assert json.loads(stored) == labels


def test_entities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "b", task="token-classify", labels=["O", "B-X", "I-X", "B-Y"])
    corpus = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in (*TEXTS[:40], "")])
    assert run(capsys, bundle, corpus, "--out", tmp_path / "o", "--shard-rows", 16)[0] == 0
    found = read(tmp_path / "o").column("entities").to_pylist()
    with bei.load(bundle) as model:
        expected = model.entities([*TEXTS[:40], ""])
    assert sum(map(len, expected)) > 40
    for row, entities in zip(found, expected, strict=True):
        assert [(e["label"], e["start"], e["end"], e["text"]) for e in row] == [
            (e.label, e.start, e.end, e.text) for e in entities
        ]
        np.testing.assert_allclose([e["score"] for e in row], [e.score for e in entities], atol=1e-6)


def test_one_bad_row_costs_little_more_than_its_slice(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker, "SLICE", 64)
    rows = [{"text": text} for text in texts(1000)]
    for place in (0, 500, 501, 999):
        rows[place] = {"text": "poison"}
    corpus = write_jsonl(tmp_path / "a.jsonl", rows)
    code, said, _ = run(capsys, bundle, corpus, "--out", tmp_path / "o", "--json")
    assert (code, json.loads(said)["failed"]) == (1, 4)
    assert [row["row"] for row in failures(tmp_path / "o")] == [0, 500, 501, 999]
    assert len(read(tmp_path / "o")) == 996


def test_a_shard_of_failures_alone_is_an_empty_file(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": text} for text in [*[None] * 10, "a"]]
    corpus = write_jsonl(tmp_path / "a.jsonl", rows)
    assert run(capsys, bundle, corpus, "--out", tmp_path / "o", "--shard-rows", 5)[0] == 1
    assert [pq.read_metadata(part).num_rows for part in sorted((tmp_path / "o").glob("*.parquet"))] == [
        0,
        0,
        1,
    ]


def test_a_broken_engine_stops_the_job_and_blames_no_row(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bei.errors import EngineError
    from bei.runtime.model import Model

    corpus = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    arguments = (bundle, corpus, "--out", tmp_path / "o", "--shard-rows", 64)

    def broken(*args: object, **options: object) -> None:
        raise EngineError("the device is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Model, "encode", broken)
        patch.setattr(Model, "warm_up", broken)
        code, _, error = run(capsys, *arguments)
    assert (code, error) == (2, "bei-embed: the device is gone\n")
    assert not list((tmp_path / "o").glob("part-*"))
    assert run(capsys, *arguments)[0] == 0
    assert len(read(tmp_path / "o")) == 500


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--column", "a", "--column", "b"], "--column: got 2, a model for 'embed' needs 1"),
        (["--dimensions", "3"], "dimensions: got 3, but the model was trained for 4, 8"),
        (["--prompt-name", "passage"], "prompt_name: 'passage' is unknown"),
        (["--target", "cuda-sm90"], "no engine for target 'cuda-sm90'"),
        (["--column", "body"], "has no 'body' (it has text)"),
    ],
)
def test_options_that_do_not_fit(
    flags: list[str], message: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    code, _, error = run(capsys, bundle, corpus, "--out", tmp_path / "o", *flags)
    assert code == 2
    assert message in error
    assert not list((tmp_path / "o").glob("[!.]*"))


def test_options_of_vectors_for_a_model_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "b", task="classify", labels=["a", "b"])
    corpus = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    for flags in (["--dtype", "int8"], ["--dimensions", "2"], ["--prompt-name", "query"]):
        code, _, error = run(capsys, bundle, corpus, "--out", tmp_path / "o", *flags)
        assert (code, "only vectors" in error) == (2, True)


def test_nothing_to_do(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("\n\n")
    code, _, error = run(capsys, bundle, tmp_path / "a.txt", "--out", tmp_path / "o")
    assert (code, "no rows in it" in error) == (2, True)
    (tmp_path / "b.txt").write_text("a\n")
    assert run(capsys, bundle, tmp_path / "b.txt", "--out", tmp_path / "p", "--dtype", "int8")[0] == 2


def test_the_output_in_an_object_store(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import fsspec

    corpus = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    arguments = (bundle, corpus, "--shard-rows", 100)
    assert run(capsys, *arguments, "--out", "memory://results/here")[0] == 0
    assert run(capsys, *arguments, "--out", tmp_path / "o")[0] == 0
    memory = fsspec.filesystem("memory")
    for part in sorted((tmp_path / "o").glob("part-*")):
        assert memory.cat(f"/results/here/{part.name}") == part.read_bytes()
    memory.rm("/results/here/part-000002.parquet")
    code, said, _ = run(capsys, *arguments, "--out", "memory://results/here", "--json")
    assert (code, json.loads(said)["done_before"]) == (0, 400)
    again = memory.cat("/results/here/part-000002.parquet")
    assert again == (tmp_path / "o/part-000002.parquet").read_bytes()
