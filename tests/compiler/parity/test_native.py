"""Checkpoints that transformers cannot load as they are: their references agree with the slow, independent ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from bei.compiler.parity.native import translated
from bei.errors import ParityError
from tests.adapters.references.gte import Gte
from tests.adapters.references.jina import Jina
from tests.adapters.references.nomic import V1, V2_MOE, Nomic
from tests.adapters.references.plain import Reference
from tests.adapters.tiny import assert_near, batch, enliven

PLAIN_V1 = V1 | {"rotary_scaling_factor": None}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Jina(code=False),
        lambda: Jina(code=True),
        lambda: Jina(code=False, reglu=True),
        lambda: Nomic(V1),
        lambda: Nomic(PLAIN_V1),
        lambda: Nomic(V2_MOE),
        Gte,
    ],
    ids=["jina", "jina-code", "jina-reglu", "nomic-ntk", "nomic", "nomic-moe", "gte-ntk"],
)
def test_the_same_function_as_the_slow_reference(make: Callable[[], Reference], tmp_path: Path) -> None:
    slow = make()
    enliven(slow)
    slow.save_pretrained(tmp_path)
    ids, mask = batch((1, 5, 7, 13), 97)
    with translated(tmp_path) as folder, torch.inference_mode():
        assert folder != tmp_path
        model = AutoModel.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32).eval()
        ours = model(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = slow(ids, mask).last_hidden_state
    real = mask.bool()
    assert_near(ours[real].numpy(), expected[real])


def test_a_missing_tensor_is_seen(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    slow = Jina(code=False)
    enliven(slow)
    slow.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["encoder.layer.1.mlp.wo.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    ids, mask = batch((5,), 97)
    with translated(tmp_path) as folder:
        model = AutoModel.from_pretrained(folder, trust_remote_code=False).eval()
    assert model(input_ids=ids, attention_mask=mask).last_hidden_state.isnan().any()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "new", "logn_attention_scale": True}, "logn_attention_scale=True"),
        (
            {"model_type": "bert", "position_embedding_type": "alibi", "feed_forward_type": "original"},
            "original",
        ),
        ({"model_type": "nomic_bert", "n_embd": 8, "prenorm": True}, "prenorm=True"),
        ({"model_type": "nomic_bert", "n_embd": 8}, "lacks 'vocab_size'"),
    ],
)
def test_what_has_no_reference_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ParityError, match=message), translated(tmp_path):
        pass


def test_what_transformers_reads_rightly_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    with translated(tmp_path) as folder:
        assert folder == tmp_path
    shutil.rmtree(tmp_path)
