"""The facts agree with themselves and with what is known about the real files."""

from pathlib import Path

import pytest

from bei.compiler.zoo import fact_files
from bei.compiler.zoo.fact_files import facts_of, load_facts, tensor_groups, tokenizer_facts
from bei.compiler.zoo.fixture import real_size
from bei.compiler.zoo.shapes import dimensions, tensors_of
from bei.errors import CheckpointError

every = pytest.mark.parametrize("repo", load_facts())


def test_there_are_41_checkpoints() -> None:
    assert len(load_facts()) == 41


@every
def test_the_tensors_are_as_many_as_in_the_real_file(repo: str) -> None:
    facts = facts_of(repo)
    tensors = tensors_of(facts, facts.config)
    assert len({spec.name for spec in tensors}) == len(tensors) == facts.count


@pytest.mark.parametrize("repo", [repo for repo, facts in load_facts().items() if facts.bytes])
def test_the_file_has_the_real_size_to_the_byte(repo: str) -> None:
    assert real_size(facts_of(repo)) == facts_of(repo).bytes


@every
def test_special_token_ids_of_the_configuration_are_tokens(repo: str) -> None:
    facts = facts_of(repo)
    ids = tokenizer_facts()[facts.tokenizer.name].ids.values()
    named = {key: value for key, value in facts.config.items() if key.endswith("_token_id")}
    assert all(value is None or value in ids for value in named.values())


@every
def test_special_tokens_fit_into_the_tables(repo: str) -> None:
    facts = facts_of(repo)
    tokenizer = tokenizer_facts()[facts.tokenizer.name]
    assert max(tokenizer.ids.values()) < tokenizer.size <= facts.config["vocab_size"]
    assert set(tokenizer.roles.values()) <= set(tokenizer.ids)


@every
def test_reduced_depth_is_less_than_the_real_one(repo: str) -> None:
    assert 1 < facts_of(repo).layers <= dimensions(facts_of(repo).config)["L"]


def test_every_group_and_tokenizer_is_used() -> None:
    entries = load_facts().values()
    groups = {group for facts in entries for groups in facts.tensors.values() for group in groups}
    assert groups == set(tensor_groups())
    assert {facts.tokenizer.name for facts in entries} == set(tokenizer_facts())


def test_kinds_of_layers_are_kept() -> None:
    """The depth that the facts call enough shows every kind of layer."""
    gemma = facts_of("google/embeddinggemma-300m")
    assert set(gemma.config["layer_types"][: gemma.layers]) == {"full_attention", "sliding_attention"}
    modern = facts_of("answerdotai/ModernBERT-base")
    every_n = modern.config["global_attn_every_n_layers"]
    kinds = {(i % every_n == 0, i == 0) for i in range(modern.config["num_hidden_layers"])}
    assert {(i % every_n == 0, i == 0) for i in range(modern.layers)} == kinds
    nomic = facts_of("nomic-ai/nomic-embed-text-v2-moe")
    assert nomic.layers >= nomic.config["moe_every_n_layers"]


def test_an_unknown_repository_gets_a_suggestion() -> None:
    with pytest.raises(CheckpointError, match=r"^BAAI/bge-m4: not in the zoo\. Did you mean BAAI/bge-m3\?"):
        facts_of("BAAI/bge-m4")


def test_an_unknown_revision_names_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match=r"no facts about revision 'v9' \(there are: refs/pr/5\)"):
        facts_of("voyageai/voyage-4-nano", "v9")


def test_a_revision_replaces_keys_and_tensors() -> None:
    main, other = facts_of("voyageai/voyage-4-nano"), facts_of("voyageai/voyage-4-nano", "refs/pr/5")
    assert "auto_map" in main.config and "auto_map" not in other.config
    assert other.config["is_causal"] is False
    names = {spec.name for spec in tensors_of(other, other.config)}
    assert "embed_tokens.weight" in names and "linear.weight" not in names


def test_an_unknown_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.yaml").write_text("checkpoints: {a/b: {dtype: F32, surprise: 1}}")
    monkeypatch.setattr(fact_files, "FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match=r"^x\.yaml: a/b: .*surprise"):
        load_facts.__wrapped__()
