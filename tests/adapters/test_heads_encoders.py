"""Classification heads and rerankers of the encoder families: logits of the transformers class, through the real loader."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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

from bei.adapters.config import Act
from bei.adapters.head import Dense, Head, LayerNorm, Step
from bei.compiler.lowering.torch_ops import run_torch
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
from tests.adapters.heads import assert_output, load_head
from tests.adapters.references.jina import Jina
from tests.adapters.tiny import batch, enliven


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


def save(case: Row, folder: Path) -> tuple[Any, Tensor, Tensor, Tensor]:
    """The model, written to ``folder``; ids, mask and the logits it gives for them."""
    model: Any = enliven(case.model())
    model.save_pretrained(folder)
    if case.edit is not None:
        path = folder / "config.json"
        path.write_text(json.dumps(case.edit(json.loads(path.read_text()))))
    ids, mask = batch((1, 7, 12), 97)
    ids = ids.masked_fill(mask == 0, model.config.pad_token_id)
    with torch.inference_mode():
        return model, ids, mask, model(input_ids=ids, attention_mask=mask).logits


@pytest.mark.parametrize("case", ROWS, ids=lambda case: f"{case.name}-{case.task}")
def test_logits(case: Row, tmp_path: Path) -> None:
    model, ids, mask, expected = save(case, tmp_path)
    head = assert_output(tmp_path, expected, ids, mask)
    assert head.task == case.task
    assert len(head.labels) == expected.shape[-1]
    assert head.problem_type == model.config.problem_type


OTHER_ACTS: tuple[Act, ...] = ("identity", "tanh", "sigmoid")


def mutants(head: Head) -> Iterator[Head]:
    """Another pooling; each step with another activation or eps, or left out where widths allow."""
    if head.pooling:
        yield replace(head, pooling=("mean",) if head.pooling == ("cls",) else ("cls",))
    for i, step in enumerate(head.steps):
        changes: list[Step] = []
        if isinstance(step, Dense):
            changes = [replace(step, act=act) for act in OTHER_ACTS if act != step.act]
        elif isinstance(step, LayerNorm):
            changes = [replace(step, eps=1e-12)]
        yield from (replace(head, steps=(*head.steps[:i], new, *head.steps[i + 1 :])) for new in changes)
        if i + 1 < len(head.steps):
            yield replace(head, steps=(*head.steps[:i], *head.steps[i + 1 :]))


SEQUENCES = tuple(row for row in ROWS if row.task != "token-classify" and row.edit is None)


@pytest.mark.parametrize("case", SEQUENCES, ids=lambda case: case.name)
def test_parity_sees_every_fact_of_a_head(case: Row, tmp_path: Path) -> None:
    _, ids, mask, expected = save(case, tmp_path)
    loaded, head = load_head(tmp_path)
    for mutant in mutants(head):
        ours = run_torch(loaded.cfg, mutant, loaded.weights, ids, mask)
        assert float((ours - expected).abs().max()) > 1e-3, mutant


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
    assert assert_output(tmp_path, expected, ids, mask).task == "rerank"
