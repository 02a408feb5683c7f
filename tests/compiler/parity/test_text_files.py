"""The user's own texts, from files in good and bad shape."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from bei.compiler.parity.text_files import read_texts
from bei.errors import ParityError


def write(tmp_path: Path, name: str, data: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def texts(path: Path) -> list[tuple[str, str | None]]:
    return [(sample.text, sample.pair) for sample in read_texts(path)]


def test_txt(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "\ufefffirst\r\n\n  second  \nünïcode \u2028 stays\n")
    assert texts(path) == [("first", None), ("  second  ", None), ("ünïcode \u2028 stays", None)]


def test_jsonl(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "a.jsonl",
        '"plain"\n{"text": "a", "id": 3}\n\n{"text": "b", "pair": "c"}\n{"query": "q", "documents": ["d", "e"]}\n'
        '{"query": "p", "document": "f"}\n{"query": "q", "document": "g"}\n',
    )
    assert texts(path) == [
        ("plain", None),
        ("a", None),
        ("b", "c"),
        ("q", "d"),
        ("q", "e"),
        ("p", "f"),
        ("q", "g"),
    ]
    assert [sample.group for sample in read_texts(path)] == [None, None, None, 0, 0, 1, 0]


def test_csv(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'id,text\n1,"two\nlines, quoted"\n2,plain\n')
    assert texts(path) == [("two\nlines, quoted", None), ("plain", None)]
    path = write(tmp_path, "b.CSV", "query,document\nq,d\nq,e\n")
    assert [(sample.text, sample.pair, sample.group) for sample in read_texts(path)] == [
        ("q", "d", 0),
        ("q", "e", 0),
    ]


def test_parquet(tmp_path: Path) -> None:
    pa: Any = import_module("pyarrow")
    pq: Any = import_module("pyarrow.parquet")
    pq.write_table(pa.table({"id": [1, 2], "text": ["a", "b"]}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == [("a", None), ("b", None)]
    pq.write_table(pa.table({"query": ["q"], "documents": [["d", "e"]]}), tmp_path / "b.parquet")
    assert texts(tmp_path / "b.parquet") == [("q", "d"), ("q", "e")]


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ParityError, match="needs pyarrow"):
        read_texts(write(tmp_path, "a.parquet", b""))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.pdf", "x", "unknown kind of text file"),
        ("a.txt", "", "no texts in it"),
        ("a.txt", b"fine\n\xff\xfe", "not UTF-8"),
        ("a.jsonl", '"a"\n{"text": ', "line 2: not valid JSON"),
        ("a.jsonl", "3\n", "line 1: got int"),
        ("a.jsonl", '{"body": "x"}', "line 1: no 'text' and no 'query' .got body"),
        ("a.jsonl", '{"text": 3}', "line 1: int where a text is needed"),
        ("a.jsonl", '{"text": "  "}', "line 1: an empty text"),
        ("a.jsonl", '{"text": "\\ud800"}', "lone surrogate"),
        ("a.jsonl", '{"query": "q", "documents": []}', "need a list with at least 1 text"),
        ("a.jsonl", '{"query": "q", "documents": "d"}', "'documents' is an? "),
        ("a.jsonl", '{"query": "q"}', "NoneType where a text is needed"),
        ("a.jsonl", "[" * 100_000, "nested too deeply"),
        ("a.csv", "body\nx\n", "no 'text' and no 'query'"),
        ("a.csv", 'text\n"open', "unexpected end of data"),
        ("a.parquet", b"not parquet at all", "not a readable parquet file"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, data: str | bytes, message: str) -> None:
    with pytest.raises(ParityError, match=message):
        read_texts(write(tmp_path, name, data))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="cannot be read"):
        read_texts(tmp_path / "none.txt")
