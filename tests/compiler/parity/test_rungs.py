"""The torch rung's hidden states are transformers', by name, for every family that transformers has."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from bei.compiler.parity.layers import compare_layers
from bei.compiler.parity.reference import named_states
from bei.compiler.parity.rungs import TorchEncoder
from bei.compiler.precision.policy import Policy
from bei.runtime.executor import Row
from tests.adapters.cases import CASES
from tests.adapters.tiny import HIDDEN_STATES, Case, load, save

FAMILIES = ("bert", "roberta", "mpnet", "modernbert", "nomic-bert", "gte", "llama", "qwen3", "gemma3")
"""Post-norm, pre-norm and sandwich; with and without a norm after the embeddings, before the first layer, at the end."""


def states(case: Case, folder: Path, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ours and theirs for one text."""
    model: Any = save(case, folder)
    assert isinstance(model, PreTrainedModel)
    loaded = load(folder)
    ids = torch.randint(5, loaded.cfg.vocab, (1, 9), generator=torch.Generator().manual_seed(3))
    theirs = named_states(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    encoder = TorchEncoder(cfg=loaded.cfg, head=HIDDEN_STATES, weights=loaded.weights, **settings)
    row = Row(ids=ids[0].numpy().astype(np.int32), types=np.zeros(9, np.int32))
    return encoder.hidden_states(row), theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_states_equal_transformers(family: str, tmp_path: Path) -> None:
    (case,) = (case for case in CASES if case.name == family)
    ours, theirs = states(case, tmp_path, precision="fp32")
    assert set(ours) == set(theirs)
    drift = compare_layers(ours, theirs, 1e-4)
    assert drift.first is None
    assert drift.rows[0].name == "embed"
    assert drift.rows[-1].name == "output"


@pytest.mark.parametrize("family", ["bert", "llama", "gemma3"])
def test_states_are_unscaled_under_a_folded_stream(family: str, tmp_path: Path) -> None:
    (case,) = (case for case in CASES if case.name == family)
    ours, theirs = states(case, tmp_path, precision="fp32", policy=Policy(stream=2.0**-6))
    assert compare_layers(ours, theirs, 1e-4).first is None


def test_storage_shows(tmp_path: Path) -> None:
    (case,) = (case for case in CASES if case.name == "bert")
    ours, theirs = states(case, tmp_path, precision="fp16")
    errors = [row.relative_error or 0 for row in compare_layers(ours, theirs, 1).rows]
    assert 1e-5 < errors[-1] < 2e-2
