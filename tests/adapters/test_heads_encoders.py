"""Classification heads and rerankers of the encoder families: logits of the transformers class, through the real loader."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    CamembertConfig,
    CamembertForSequenceClassification,
    CamembertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    GteConfig,
    GteForSequenceClassification,
    GteForTokenClassification,
    JinaEmbeddingsV3Config,
    JinaEmbeddingsV3ForSequenceClassification,
    JinaEmbeddingsV3ForTokenClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    MPNetForTokenClassification,
    NomicBertConfig,
    NomicBertForSequenceClassification,
    NomicBertForTokenClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
)

from bei.adapters.head import Head
from bei.adapters.registry import adapter_for
from bei.compiler.checkpoint.checkpoint import open_checkpoint
from bei.compiler.checkpoint.load import load_model
from bei.compiler.lowering.policy import ONNXRUNTIME_CPU
from bei.compiler.lowering.signature import signature
from bei.compiler.lowering.torch_ops import run_torch
from bei.compiler.weights import check_shapes
from bei.manifest import Task
from tests.adapters.cases_encoders import (
    DISTIL,
    MODERN,
    NOMIC,
    NTK_AS_LINEAR,
    POST,
    ROBERTA_TINY,
    Config,
    gte_new,
    modernbert_legacy,
)
from tests.adapters.references.jina import Jina
from tests.adapters.tiny import Loaded, batch, enliven, run_onnx


@dataclass(frozen=True, slots=True)
class Row:
    """``model`` with a head; ``task`` is what its files make of it."""

    name: str
    task: Task
    model: Callable[[], nn.Module]
    edit: Callable[[Config], Config] | None = None


def row(name: str, task: Task, kind: Any, config: Any, facts: Config, edit: Any = None) -> Row:
    labels = {"rerank": 1, "classify": 3, "token-classify": 5}[task]
    return Row(name, task, lambda: kind(config(**facts, num_labels=labels)), edit)


MULTI: Config = {"problem_type": "multi_label_classification"}
MEAN: Config = MODERN | {"classifier_pooling": "mean"}
BIASED: Config = MODERN | {
    "classifier_pooling": "cls",
    "classifier_bias": True,
    "classifier_activation": "silu",
}
NTK: Config = POST | {"pad_token_id": 1, "rope_parameters": NTK_AS_LINEAR}

ROWS = (
    row("bert", "classify", BertForSequenceClassification, BertConfig, POST | MULTI),
    row("bert", "token-classify", BertForTokenClassification, BertConfig, POST),
    row("roberta", "classify", RobertaForSequenceClassification, RobertaConfig, ROBERTA_TINY | MULTI),
    row("roberta", "token-classify", RobertaForTokenClassification, RobertaConfig, ROBERTA_TINY),
    row("xlm-roberta", "rerank", XLMRobertaForSequenceClassification, XLMRobertaConfig, ROBERTA_TINY),
    row("xlm-roberta", "token-classify", XLMRobertaForTokenClassification, XLMRobertaConfig, ROBERTA_TINY),
    row("camembert", "classify", CamembertForSequenceClassification, CamembertConfig, ROBERTA_TINY),
    row("camembert", "token-classify", CamembertForTokenClassification, CamembertConfig, ROBERTA_TINY),
    row("distilbert", "classify", DistilBertForSequenceClassification, DistilBertConfig, DISTIL),
    row("distilbert", "token-classify", DistilBertForTokenClassification, DistilBertConfig, DISTIL),
    row("mpnet", "rerank", MPNetForSequenceClassification, MPNetConfig, POST),
    row("mpnet", "token-classify", MPNetForTokenClassification, MPNetConfig, POST),
    row("modernbert-mean", "rerank", ModernBertForSequenceClassification, ModernBertConfig, MEAN),
    row(
        "modernbert-mean-legacy",
        "rerank",
        ModernBertForSequenceClassification,
        ModernBertConfig,
        MEAN,
        modernbert_legacy,
    ),
    row("modernbert-cls", "classify", ModernBertForSequenceClassification, ModernBertConfig, BIASED),
    row("modernbert", "token-classify", ModernBertForTokenClassification, ModernBertConfig, MODERN),
    row("nomic-bert", "classify", NomicBertForSequenceClassification, NomicBertConfig, NOMIC),
    row("nomic-bert", "token-classify", NomicBertForTokenClassification, NomicBertConfig, NOMIC),
    row("gte", "rerank", GteForSequenceClassification, GteConfig, NTK),
    row("gte-new", "rerank", GteForSequenceClassification, GteConfig, NTK, gte_new),
    row("gte", "token-classify", GteForTokenClassification, GteConfig, NTK),
    row("jina-v3", "rerank", JinaEmbeddingsV3ForSequenceClassification, JinaEmbeddingsV3Config, ROBERTA_TINY),
    row(
        "jina-v3",
        "token-classify",
        JinaEmbeddingsV3ForTokenClassification,
        JinaEmbeddingsV3Config,
        ROBERTA_TINY,
    ),
)


def load(folder: Path) -> tuple[Loaded, Head]:
    """As a compile does, shapes checked."""
    checkpoint = open_checkpoint(str(folder))
    adapter = adapter_for(checkpoint.config)
    model = load_model(checkpoint, adapter)
    needs = signature(model.cfg, model.head)
    check_shapes(adapter.name, model.weights, needs.needed, needs.optional)
    return Loaded(adapter=adapter, cfg=model.cfg, weights=model.weights, folder=folder), model.head


def assert_logits(folder: Path, expected: Tensor, ids: Tensor, mask: Tensor) -> Head:
    """TorchOps, and the ONNX graph padded and packed, give the reference's logits."""
    loaded, head = load(folder)
    real = mask.bool() if head.task == "token-classify" else torch.ones(len(ids), dtype=torch.bool)
    ours = run_torch(loaded.cfg, head, loaded.weights, ids, mask)
    torch.testing.assert_close(ours[real], expected[real], atol=1e-5, rtol=1e-5)
    for policy in (ONNXRUNTIME_CPU, replace(ONNXRUNTIME_CPU, layout="packed")):
        graph = run_onnx(loaded, ids, mask, head=head, policy=policy)
        np.testing.assert_allclose(graph[real], ours[real].numpy(), atol=2e-5, rtol=1e-4)
    return head


@pytest.mark.parametrize("case", ROWS, ids=lambda case: f"{case.name}-{case.task}")
def test_logits(case: Row, tmp_path: Path) -> None:
    model: Any = enliven(case.model())
    model.save_pretrained(tmp_path)
    if case.edit is not None:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(case.edit(json.loads(path.read_text()))))
    ids, mask = batch((1, 7, 12), 97)
    ids = ids.masked_fill(mask == 0, model.config.pad_token_id)
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).logits
    head = assert_logits(tmp_path, expected, ids, mask)
    assert head.task == case.task
    assert len(head.labels) == expected.shape[-1]
    assert head.problem_type == model.config.problem_type


@pytest.mark.parametrize("code", [False, True], ids=["jina-bert", "jina-bert-code"])
def test_a_jina_reranker_is_berts(code: bool, tmp_path: Path) -> None:
    """classifier(tanh(pooler.dense(first token))), the encoder under `bert.`; the formula of its published code."""
    model: Any = enliven(Jina(code=code))
    model.facts |= {"architectures": ["JinaBertForSequenceClassification"], "id2label": {"0": "score"}}
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weight, bias = torch.randn(1, 36), torch.randn(1)
    stored = {f"bert.{name}": tensor for name, tensor in load_file(path).items()}
    save_file(stored | {"classifier.weight": weight, "classifier.bias": bias}, path)
    ids, mask = batch((1, 7, 12), 97)
    with torch.inference_mode():
        first = model(ids, mask).last_hidden_state[:, 0]
        expected = torch.tanh(model.linear(first.double(), "pooler.dense")).float() @ weight.T + bias
    assert assert_logits(tmp_path, expected, ids, mask).task == "rerank"
