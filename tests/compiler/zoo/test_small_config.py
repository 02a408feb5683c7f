"""What a reduced configuration keeps."""

import pytest

from bei.compiler.zoo.fact_files import facts_of, load_facts, tokenizer_facts
from bei.compiler.zoo.fixture import FixtureOptions, plan_fixture
from bei.compiler.zoo.shapes import dimensions
from bei.compiler.zoo.small_config import stand_in_config
from bei.errors import CheckpointError

every = pytest.mark.parametrize("repo", load_facts())


@every
def test_proportions_are_kept(repo: str) -> None:
    real = dimensions(facts_of(repo).config)
    small = dimensions(plan_fixture(facts_of(repo)).config)
    assert small["D"] < real["D"]
    assert small["Q"] * real["K"] == real["Q"] * small["K"], "query heads per key/value head"
    assert small["D"] * real["Q"] == real["D"] * small["Q"], "hidden size to heads times head size"
    assert _is_power_of_two(small["H"]) == _is_power_of_two(real["H"]), "ALiBi slopes depend on it"
    assert (small["K"] == small["d"]) == (real["K"] == real["d"]), "several key/value heads stay several"
    assert small["F"] % 8 == 0 and small["D"] % 8 == 0
    for symbol in ("T", "E", "B", "C"):
        assert small.get(symbol) == real.get(symbol)


@every
def test_every_key_is_kept(repo: str) -> None:
    assert plan_fixture(facts_of(repo)).config.keys() == facts_of(repo).config.keys()


@every
def test_full_width_changes_the_depth_alone(repo: str) -> None:
    facts = facts_of(repo)
    tokenizer = tokenizer_facts()[facts.tokenizer.name]
    config = stand_in_config(
        facts, layers=2, full_width=True, full_vocabulary=True, tokenizer=tokenizer, ids=tokenizer.ids
    )
    changed = {key for key, value in config.items() if value != facts.config[key]}
    assert changed <= {"num_hidden_layers", "n_layer", "max_window_layers", "layer_types"}


@every
def test_a_small_vocabulary_changes_tables_and_ids_alone(repo: str) -> None:
    plan = plan_fixture(facts_of(repo), FixtureOptions(full_width=True, small_vocabulary=True))
    real = facts_of(repo).config
    changed = {key for key, value in plan.config.items() if value != real[key]}
    ids = {key for key in changed if key.endswith("_token_id")}
    assert changed - ids <= {
        "vocab_size",
        *("num_hidden_layers", "n_layer", "max_window_layers", "layer_types"),
    }
    assert len(plan.vocabulary.tokens) <= plan.config["vocab_size"] < 4000


@every
def test_ids_are_rows_of_the_table(repo: str) -> None:
    plan = plan_fixture(facts_of(repo))
    named = [value for key, value in plan.config.items() if key.endswith("_token_id") and value is not None]
    assert max([len(plan.vocabulary.tokens) - 1, *named]) < plan.config["vocab_size"]


def test_rows_beyond_the_tokenizer_are_kept() -> None:
    nomic = plan_fixture(facts_of("nomic-ai/nomic-embed-text-v1.5"))
    assert nomic.config["vocab_size"] > len(nomic.vocabulary.tokens)
    roberta = plan_fixture(facts_of("BAAI/bge-m3"))
    assert roberta.config["vocab_size"] == len(roberta.vocabulary.tokens)


def test_windows_are_felt_by_short_texts() -> None:
    modern = plan_fixture(facts_of("answerdotai/ModernBERT-base")).config
    mistral = plan_fixture(facts_of("Salesforce/SFR-Embedding-2_R")).config
    assert 2 <= modern["local_attention"] // 2 < modern["max_position_embeddings"] // 4
    assert mistral["sliding_window"] < mistral["max_position_embeddings"] // 4


@pytest.mark.parametrize("layers", [0, 13])
def test_layers_that_the_checkpoint_does_not_have(layers: int) -> None:
    with pytest.raises(CheckpointError, match=rf"^BAAI/bge-base-en-v1\.5: {layers} layers, need 1 to 12\."):
        plan_fixture(facts_of("BAAI/bge-base-en-v1.5"), FixtureOptions(layers=layers))


def _is_power_of_two(n: int) -> bool:
    return n & (n - 1) == 0
