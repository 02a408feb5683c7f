"""Every stand-in goes through the whole reader: adapter found, head read, every tensor accounted for."""

import pytest

from bei.adapters.base import HfConfig
from bei.adapters.registry import adapter_for
from bei.compiler.checkpoint.checkpoint import open_checkpoint
from bei.compiler.checkpoint.load import load_model
from bei.compiler.checkpoint.tokenizer import read_tokenizer
from bei.compiler.lowering.signature import signature
from bei.compiler.weights import check_shapes
from bei.compiler.zoo.fact_files import facts_of, load_facts
from tests.compiler.zoo.conftest import StandIn

REVISIONS = [
    (repo, revision) for repo, facts in load_facts().items() for revision in (None, *facts.revisions)
]


@pytest.mark.parametrize(("repo", "revision"), REVISIONS)
def test_every_tensor_is_accounted_for(repo: str, revision: str | None, stand_in: StandIn) -> None:
    folder, plan = stand_in(repo, revision)
    checkpoint = open_checkpoint(str(folder))
    adapter = adapter_for(checkpoint.config)
    assert adapter == adapter_for(HfConfig(facts_of(repo, revision).config))
    model = load_model(checkpoint, adapter)
    needs = signature(model.cfg, model.head)
    check_shapes(adapter.name, model.weights, needs.needed, needs.optional)
    tokenizer = read_tokenizer(checkpoint, model.head_files, model.cfg)
    assert len(model.cfg.layers) == plan.facts.layers
    assert 16 <= tokenizer.max_length <= 128
    assert all(max(golden.ids, default=0) < model.cfg.vocab for golden in tokenizer.spec.golden)
