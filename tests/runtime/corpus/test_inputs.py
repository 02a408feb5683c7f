"""Every kind of input gives the same rows, in the same order, wherever it lies."""

import bz2
import csv
import gzip
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bei.errors import InputError
from bei.runtime.corpus import lines as lines_module
from bei.runtime.corpus.inputs import check_inputs, find_inputs
from bei.runtime.corpus.reader import Wanted
from bei.runtime.corpus.rows import Row
from bei.runtime.corpus.shards import ShardReader, cut

TEXTS = ["plain", "with, comma", 'with "quotes"', "héllo wörld 🙂", "two\tcolumns", "x" * 5000, "last"]
IDS = [3, 1, 4, 1, 5, 9, 2]


def table(dictionary: bool = False) -> pa.Table:
    text = pa.array(TEXTS)
    return pa.table(
        {
            "n": pa.array(range(7)),
            "text": text.dictionary_encode() if dictionary else text,
            "key": pa.array(IDS),
        }
    )


def write_jsonl(path: Path) -> None:
    rows = zip(TEXTS, IDS, strict=True)
    path.write_text("\n".join(json.dumps({"text": t, "key": k}) + "\n" for t, k in rows))


def write_csv(path: Path, delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([["key", "text"], *zip(IDS, TEXTS, strict=True)])


def write_arrow(path: Path, make: Callable[..., pa.ipc.RecordBatchStreamWriter]) -> None:
    with pa.OSFile(str(path), "wb") as sink, make(sink, table().schema) as writer:
        writer.write_table(table(), max_chunksize=3)


def write_dataset(folder: Path) -> None:
    """As `Dataset.save_to_disk` lays it out, the second file named before the first."""
    folder.mkdir()
    parts = (
        ("data-00001-of-00002.arrow", table().slice(0, 4)),
        ("data-00000-of-00002.arrow", table().slice(4)),
    )
    for name, part in parts:
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, part.schema) as writer:
            writer.write_table(part)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name, _ in parts]}))


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": write_jsonl,
    "a.csv": write_csv,
    "a.tsv": lambda path: write_csv(path, "\t"),
    "a.parquet": lambda path: pq.write_table(table(), path, row_group_size=2),
    "dictionary.parquet": lambda path: pq.write_table(table(dictionary=True), path),
    "a.arrow": lambda path: write_arrow(path, pa.ipc.new_stream),
    "a.feather": lambda path: write_arrow(path, pa.ipc.new_file),
    "saved": write_dataset,
}


def rows_of(names: Sequence[object], wanted: Wanted, *, shard_rows: int = 3) -> list[Row]:
    """Read shard by shard; and once more from the last shard to the first, which must give the same."""
    files = find_inputs([str(name) for name in names])
    ids = check_inputs(files, wanted)
    shards = cut(files, wanted, rows=shard_rows)
    assert all(shard.rows <= shard_rows for shard in shards)
    reader = ShardReader(files, wanted, ids)
    forward = [reader.read(shard) for shard in shards]
    assert [reader.read(shard) for shard in reversed(shards)] == forward[::-1]
    return [row for shard in forward for row in shard]


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    rows = rows_of([tmp_path / name], Wanted(columns=("text",), id_column="key"))
    assert [row.text for row in rows] == TEXTS
    keys = IDS if name not in ("a.csv", "a.tsv") else [str(key) for key in IDS]
    assert [row.id for row in rows] == keys
    assert not any(row.reason for row in rows)


def test_a_text_file_has_one_text_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\n  \ntwo \nthree".encode())
    rows = rows_of([tmp_path / "a.txt"], Wanted(columns=("text",)))
    assert [(row.text, row.id) for row in rows] == [("one", 0), ("two ", 1), ("three", 2)]
    with pytest.raises(InputError, match="one text a line"):
        rows_of([tmp_path / "a.txt"], Wanted(columns=("text",), id_column="id"))


@pytest.mark.parametrize(
    ("ending", "pack"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".zst", lambda data: pa.compress(data, "zstd", asbytes=True)),
    ],
)
def test_compressed_lines(ending: str, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "plain")
    (tmp_path / f"a.jsonl{ending}").write_bytes(pack((tmp_path / "plain").read_bytes()))
    rows = rows_of([tmp_path / f"a.jsonl{ending}"], Wanted(columns=("text",)), shard_rows=2)
    assert [row.text for row in rows] == TEXTS


def test_shards_go_over_the_ends_of_files_and_bytes_end_them(tmp_path: Path) -> None:
    for index, count in enumerate((2, 0, 4, 1)):
        (tmp_path / f"{index}.txt").write_text("".join(f"{index}-{n}\n" for n in range(count)))
    files = find_inputs([str(tmp_path)])
    shards = cut(files, Wanted(columns=("text",)), rows=3)
    assert [(shard.first, shard.rows, len(shard.segments)) for shard in shards] == [
        (0, 3, 2),
        (3, 3, 1),
        (6, 1, 1),
    ]
    small = cut(files, Wanted(columns=("text",)), rows=100, nbytes=9)
    assert [shard.rows for shard in small] == [2, 2, 2, 1]
    one_each = cut(files, Wanted(columns=("text",)), rows=100, nbytes=1)
    assert [shard.rows for shard in one_each] == [1] * 7


def test_folders_globs_and_their_order(tmp_path: Path) -> None:
    for name in (
        "b/2.txt",
        "b/10.txt",
        "a/1.txt",
        "a/_hidden.txt",
        ".git/x.txt",
        "a/deep/3.txt",
        "a/notes.md",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a\n")

    def found(*names: str) -> list[str]:
        return [
            os.path.relpath(file.uri, tmp_path) for file in find_inputs([f"{tmp_path}/{n}" for n in names])
        ]

    assert found("b", "a") == ["b/10.txt", "b/2.txt", "a/1.txt", "a/deep/3.txt"]
    assert found("*/*.txt") == ["a/1.txt", "b/10.txt", "b/2.txt"]
    assert found("**/[13].txt") == ["a/1.txt", "a/deep/3.txt"]
    assert found("?") == ["a/1.txt", "a/deep/3.txt", "b/10.txt", "b/2.txt"]
    with pytest.raises(InputError, match=r"a/notes\.md: unknown kind of file .* --format"):
        found("a/notes.md")
    assert find_inputs([f"{tmp_path}/a/notes.md"], "text")[0].format == "text"
    with pytest.raises(InputError, match="no input files there"):
        found("c*")
    with pytest.raises(InputError, match="no such file or folder"):
        found("c")
    with pytest.raises(InputError, match="given twice"):
        found("b", "b/2.txt")


def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("a\n")
    assert len(find_inputs([str(tmp_path / "a[1].txt")])) == 1


def test_object_stores(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl")
    pq.write_table(table(), tmp_path / "b.parquet", row_group_size=2)
    write_arrow(tmp_path / "c.arrow", pa.ipc.new_stream)
    memory = fsspec.filesystem("memory")
    for name in ("a.jsonl", "b.parquet", "c.arrow"):
        memory.pipe(f"/stored/{name}", (tmp_path / name).read_bytes())
    wanted = Wanted(columns=("text",), id_column="key")
    for name in ("memory://stored", "memory://stored/*", f"file://{tmp_path}"):
        assert [row.text for row in rows_of([name], wanted)] == TEXTS * 3
    uris = [file.uri for file in find_inputs(["memory://stored"])]
    assert [uri.rpartition("/")[2] for uri in uris] == ["a.jsonl", "b.parquet", "c.arrow"]
    assert find_inputs(uris) == find_inputs(["memory://stored"])
    with pytest.raises(InputError, match="nowhere://x: cannot be reached"):
        find_inputs(["nowhere://x"])


def test_several_splits_of_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    write_dataset(tmp_path / "train")
    (tmp_path / "test").mkdir()
    with pytest.raises(InputError, match=r"several splits\. Name one: test, train"):
        find_inputs([str(tmp_path)])
    assert len(find_inputs([str(tmp_path / "train")])) == 2


def test_ids_are_integers_only_where_all_files_have_integers(tmp_path: Path) -> None:
    wanted = Wanted(columns=("text",), id_column="key")
    write_jsonl(tmp_path / "a.jsonl")
    pq.write_table(pa.table({"text": ["t"], "key": ["k"]}), tmp_path / "b.parquet")
    rows = rows_of([tmp_path / "a.jsonl", tmp_path / "b.parquet"], wanted)
    assert [row.id for row in rows] == [*map(str, IDS), "k"]


@pytest.mark.parametrize(
    ("name", "wanted", "message"),
    [
        ("a.jsonl", Wanted(columns=("txt",)), "has no 'txt' .it has text, key."),
        ("a.csv", Wanted(columns=("txt",)), "no column 'txt' .it has key, text.*--column"),
        ("a.parquet", Wanted(columns=("txt",)), "no column 'txt' .it has n, text, key.*--column"),
        ("a.parquet", Wanted(columns=("text",), id_column="id"), "no column 'id'.*--id-column"),
        ("a.parquet", Wanted(columns=("n",)), "column 'n' holds int64, need text"),
        ("a.arrow", Wanted(columns=("key",)), "column 'key' holds int64, need text"),
    ],
)
def test_columns_that_are_not_there_are_refused_at_once(
    name: str, wanted: Wanted, message: str, tmp_path: Path
) -> None:
    WRITERS[name](tmp_path / name)
    with pytest.raises(InputError, match=message):
        check_inputs(find_inputs([str(tmp_path / name)]), wanted)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl.gz", "a.csv"])
def test_damaged_files(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PAR1 and then nothing of the kind" if name != "a.csv" else b"")
    with pytest.raises(InputError, match=name):
        check_inputs(find_inputs([str(tmp_path)]), Wanted(columns=("text",)))


def test_rows_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    lines = [
        b'{"text": "fine", "key": 1}',
        b'{"text": null, "key": 2}',
        b'{"text": 5, "key": 3}',
        b'{"text": "no key"}',
        b'{"text": "\xff", "key": 4}',
        b"{",
        b'["text"]',
        b'{"text": "surrogate \\ud800", "key": 5}',
        b'{"text": "other kind", "key": "six"}',
        b'{"text": "null key", "key": null}',
        b'{"text": "true key", "key": true}',
        b"[" * 100_000,
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    rows = rows_of([tmp_path / "a.jsonl"], Wanted(columns=("text",), id_column="key"))
    reasons = [row.reason for row in rows]
    expected = [
        None,
        "text is null",
        "text is int, need a text",
        "has no 'key'",
        "is not valid JSON",
        "is not valid JSON",
        "is list, need an object",
        "is not valid JSON",
        None,
        "its id is null",
        "its id is bool",
        "is nested too deeply",
    ]
    for reason, part in zip(reasons, expected, strict=True):
        assert (part in reason) if reason is not None and part is not None else reason == part
    assert [row.id for row in rows[:3]] == ["1", "2", "3"]  # "six" makes the column one of text


def test_csv_rows_that_cannot_be_used(tmp_path: Path) -> None:
    data = b'id,text\n1,one\n2\n3,a,b\n4,"never \xff decoded"\n5,"bad"x\n6,"line\nend"\n\n7,seven\n'
    (tmp_path / "a.csv").write_bytes(data)
    rows = rows_of([tmp_path / "a.csv"], Wanted(columns=("text",), id_column="id"), shard_rows=2)
    assert [row.text for row in rows] == ["one", None, None, None, None, "line\nend", "seven"]
    assert [row.reason for row in rows][1:3] == [
        "has 1 fields, need 2 as in the header",
        "has 3 fields, need 2 as in the header",
    ]
    assert "not UTF-8 (byte 0xff at character 6)" in str(rows[3].reason)
    assert "not valid CSV" in str(rows[4].reason)


def test_a_line_without_end_costs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MAX_LINE", 100)
    (tmp_path / "a.txt").write_text("one\n" + "x" * 100_000 + "\n" + "y" * 99 + "\ntwo\n" + "z" * 101)
    rows = rows_of([tmp_path / "a.txt"], Wanted(columns=("text",)), shard_rows=1)
    assert [row.text for row in rows] == ["one", None, "y" * 99, "two", None]
    assert rows[1].reason == "has 100001 bytes, more than 100"
    (tmp_path / "a.csv").write_text('text\none\n"' + "x" * 100_000 + "\ntwo\nthree\n")
    rows = rows_of([tmp_path / "a.csv"], Wanted(columns=("text",)), shard_rows=1)
    assert [row.text for row in rows] == ["one", None, "two", "three"]


def test_text_that_is_not_utf8_in_a_parquet_file(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"\xff\xfe", b"also good"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    rows = rows_of([tmp_path / "a.parquet"], Wanted(columns=("text",)))
    assert [row.text for row in rows] == ["good", None, "also good"]
    assert "text is not UTF-8" in str(rows[1].reason)
