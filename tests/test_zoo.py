"""model_zoo.yaml: every entry parses, is served by the adapter it names, and agrees with the known layout."""

import re
from pathlib import Path

import pytest

from bei.adapters.base import HfConfig
from bei.adapters.registry import ADAPTERS, adapter_for
from bei.compiler.parity.gate import MEANINGS
from bei.compiler.zoo.fact_files import facts_of, load_facts
from bei.compiler.zoo.sentence_files import dense_tensors
from bei.compiler.zoo.shapes import parameters, tensors_of
from bei.compiler.zoo.zoo import ZooEntry, load_zoo
from bei.errors import CheckpointError

ZOO = Path(__file__).parents[1] / "model_zoo.yaml"
ENTRIES = load_zoo(ZOO)

every = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.repo)


def test_zoo_and_facts_list_the_same_models() -> None:
    assert {entry.repo for entry in ENTRIES} == set(load_facts())


@every
def test_a_served_model_has_its_adapter(entry: ZooEntry) -> None:
    if entry.status == "planned":
        assert entry.adapter not in {adapter.name for adapter in ADAPTERS}, "it has an adapter: supported"
    else:
        assert adapter_for(HfConfig(facts_of(entry.repo).config)).name == entry.adapter


@every
def test_a_model_with_pickles_alone_must_be_converted(entry: ZooEntry) -> None:
    assert (entry.status == "convert") == bool(facts_of(entry.repo).files.pickles)


@every
def test_the_revision_is_a_commit_or_said_to_be_unverified(entry: ZooEntry) -> None:
    assert re.fullmatch(r"[0-9a-f]{40}", entry.revision) or "revision" in entry.unverified


@every
def test_the_parameters_are_those_of_the_layout(entry: ZooEntry) -> None:
    facts = facts_of(entry.repo)
    modules = (tensors_of(facts, facts.config), *dense_tensors(facts, facts.config))
    assert entry.params == sum(parameters(tensors) for tensors in modules)


@every
def test_the_limit_is_the_checkpoints_own(entry: ZooEntry) -> None:
    facts = facts_of(entry.repo)
    positions = facts.config.get("max_position_embeddings") or facts.config["n_positions"]
    assert entry.max_length <= positions
    if facts.sentence is not None and facts.sentence.max_seq_length is not None:
        assert entry.max_length == facts.sentence.max_seq_length


@every
def test_the_task_is_the_checkpoints_own(entry: ZooEntry) -> None:
    config = facts_of(entry.repo).config
    architecture = config["architectures"][0]
    tasks = {
        "ForTokenClassification": {"token-classify"},
        "ForSequenceClassification": {"classify", "rerank"},
    }
    assert entry.task in next((t for end, t in tasks.items() if architecture.endswith(end)), {"embed"})
    if entry.task == "rerank":
        assert len(config["id2label"]) == 1


@every
def test_prompts_are_not_repeated(entry: ZooEntry) -> None:
    """Those that the checkpoint stores are read from it."""
    sentence = facts_of(entry.repo).sentence
    assert not (sentence and sentence.prompts and entry.prompts.keys() & sentence.prompts.keys())


@every
def test_fields_and_measures_exist(entry: ZooEntry) -> None:
    assert set(entry.unverified) <= set(ZooEntry.__struct_fields__)
    assert all(bounds.keys() <= MEANINGS.keys() for bounds in entry.tolerances.values())


COMPLETE = "{repo: a/b, revision: c, task: embed, adapter: bert, params: 1, licence: mit, max_length: 8, status: supported}"


def test_a_complete_entry_is_read(tmp_path: Path) -> None:
    path = tmp_path / "zoo.yaml"
    path.write_text(f"[{COMPLETE}]")
    (entry,) = load_zoo(path)
    assert (entry.repo, entry.slug, entry.prompts) == ("a/b", "a--b", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"[{COMPLETE}, {COMPLETE}]", "a/b is listed 2 times"),
        (f"[{COMPLETE.replace('a/b', 'ab')}]", "repo 'ab' is not a Hub id"),
        (f"[{COMPLETE.replace('}', ', pooling: cls}')}]", r"model 1 \(a/b\): .*unknown field `pooling`"),
        (f"[{COMPLETE.replace('licence: mit, ', '')}]", r"model 1 \(a/b\): .*missing.*`licence`"),
        (f"[{COMPLETE.replace('task: embed', 'task: sing')}]", r"model 1 \(a/b\): .*'sing'"),
        (f"[{COMPLETE.replace('params: 1', 'params: 0')}]", r"model 1 \(a/b\): .*>= 1"),
        ("[1]", r"model 1 \(no repo\)"),
        ("{}", "need a list of models"),
        ("[}", "not valid YAML"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "zoo.yaml"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_zoo(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read \(No such file or directory\)"):
        load_zoo(tmp_path / "none.yaml")
