"""`bei-compile --token-embeddings`: a vector for each token, equal to transformers' last hidden state."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from transformers import AutoModel

import bei
from bei.compiler.cli import main
from bei.errors import InputError
from bei.runtime.model import Model
from tests.compiler.checkpoint import tiny
from tests.compiler.test_cli import refused

TEXTS = ["hello world", "a", "b , a . c hello"]
PROMPT = "a b "


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pooling, a dense layer and a norm follow the encoder; there is a prompt."""
    dense = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    more: dict[str, object] = {
        "modules.json": tiny.modules("Pooling", "Dense", "Normalize"),
        "1_Pooling/config.json": tiny.MEAN,
        "2_Dense/config.json": {
            "in_features": 8,
            "out_features": 4,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
        "2_Dense/model.safetensors": save({"linear.weight": dense}, {"format": "pt"}),
        "config_sentence_transformers.json": {"prompts": {"query": PROMPT}, "default_prompt_name": None},
    }
    return tiny.write(tmp_path_factory.mktemp("tokens") / "checkpoint", tiny.files(more=more))


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Iterator[Model]:
    """Compiled and certified."""
    out = checkpoint.parent / "tiny.bundle"
    flags = ["--token-embeddings", "--target", "onnxruntime-cpu"]
    assert main(["--repo", str(checkpoint), "--out", str(out), *flags]) == 0
    with bei.load(out) as model:
        yield model


def last_hidden_state(checkpoint: Path, ids: Any) -> Any:
    reference = AutoModel.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        return reference(input_ids=torch.tensor([ids.tolist()])).last_hidden_state[0].numpy()


def test_vectors_are_the_last_hidden_state(model: Model, checkpoint: Path) -> None:
    found = model.encode_tokens(TEXTS)
    rows = model.tokenizer.encode(TEXTS, max_length=model.max_length)
    assert [vectors.shape for vectors in found] == [(len(row.ids), 8) for row in rows]
    for vectors, row in zip(found, rows, strict=True):
        np.testing.assert_allclose(vectors, last_hidden_state(checkpoint, row.ids), atol=1e-5)


def test_a_prompt_goes_before_and_its_tokens_count(model: Model) -> None:
    (prompted,) = model.encode_tokens(["hello"], prompt_name="query")
    (written,) = model.encode_tokens([f"{PROMPT}hello"])
    np.testing.assert_array_equal(prompted, written)
    assert len(prompted) == 5
    with pytest.raises(InputError, match="'nope' is unknown"):
        model.encode_tokens(["hello"], prompt_name="nope")


def test_the_certificate_says_so(model: Model) -> None:
    manifest = model.manifest
    assert manifest.parity.verdicts == {"onnxruntime-cpu": "passed"}
    measures = manifest.parity.summary["onnxruntime-cpu"]["measures"]
    assert measures["cosine_min"] > 0.999999
    assert measures["token_ids_differ"] == 0
    head = manifest.head
    assert (head.task, head.output, head.dimensions) == ("embed-tokens", "token_embeddings", 8)
    assert head.per_token and not head.normalized
    report = json.loads((model.bundle.path / "parity.json").read_text())
    assert report["engines"][0]["reference"]["name"] == "transformers fp32"


def test_other_calls_say_what_the_model_is_for(model: Model) -> None:
    with pytest.raises(InputError, match="made for 'embed-tokens', this call needs embed"):
        model.encode(["a"])


def test_only_embedding_models_have_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"architectures": ["BertForSequenceClassification"], "num_labels": 2}
    tensors = tiny.tensors(prefix="bert.")
    rng = np.random.default_rng(2)
    for name, shape in (("bert.pooler.dense", (8, 8)), ("classifier", (2, 8))):
        tensors[f"{name}.weight"] = rng.normal(size=shape).astype(np.float32)
        tensors[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    folder = tiny.write(tmp_path / "classifier", tiny.files(config, tensors))
    said = refused(capsys, "--repo", folder, "--out", tmp_path / "x.bundle", "--token-embeddings")
    assert "made for 'classify', only embedding models give token embeddings" in said
    assert not (tmp_path / "x.bundle").exists()
