"""What follows the decoder families: score heads and rerankers, projections, and what embeds without any."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    EuroBertConfig,
    EuroBertForSequenceClassification,
    EuroBertForTokenClassification,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
    MistralConfig,
    MistralForSequenceClassification,
    MistralForTokenClassification,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    Qwen3ForTokenClassification,
    Qwen3Model,
)

from bei.errors import UnsupportedConfig
from bei.manifest import Task
from tests.adapters.cases_decoders import DECODER, GEMMA, LLAMA3, WIDE, WINDOW, Config, llama_bidirec, voyage
from tests.adapters.heads import assert_output, load_head
from tests.adapters.tiny import batch, enliven

LENGTHS = (1, 7, 12)


@dataclass(frozen=True, slots=True)
class Row:
    """``model`` with a head; ``task`` is what its files make of it."""

    name: str
    task: Task
    model: Callable[[], nn.Module]


def row(name: str, task: Task, kind: Any, config: Any, facts: Config) -> Row:
    labels = {"rerank": 1, "classify": 3, "token-classify": 5}[task]
    return Row(name, task, lambda: kind(config(**facts, num_labels=labels)))


EUROBERT = DECODER | {"mask_token_id": 3}
ROWS = (
    row("llama", "classify", LlamaForSequenceClassification, LlamaConfig, DECODER),
    row("llama", "token-classify", LlamaForTokenClassification, LlamaConfig, DECODER | {"is_causal": False}),
    row(
        "mistral", "rerank", MistralForSequenceClassification, MistralConfig, DECODER | {"sliding_window": 4}
    ),
    row("mistral", "token-classify", MistralForTokenClassification, MistralConfig, DECODER),
    row("qwen2", "rerank", Qwen2ForSequenceClassification, Qwen2Config, DECODER | {"is_causal": False}),
    row("qwen2", "token-classify", Qwen2ForTokenClassification, Qwen2Config, DECODER | WINDOW),
    row("qwen3", "rerank", Qwen3ForSequenceClassification, Qwen3Config, WIDE),
    row("qwen3", "classify", Qwen3ForSequenceClassification, Qwen3Config, WIDE | {"is_causal": False}),
    row("qwen3", "token-classify", Qwen3ForTokenClassification, Qwen3Config, WIDE),
    row("gemma3", "classify", Gemma3TextForSequenceClassification, Gemma3TextConfig, GEMMA),
    *(
        row(f"eurobert-{pooling}", "rerank", EuroBertForSequenceClassification, EuroBertConfig, facts)
        for pooling, facts in ((p, EUROBERT | {"classifier_pooling": p}) for p in ("bos", "mean"))
    ),
    row("eurobert", "token-classify", EuroBertForTokenClassification, EuroBertConfig, EUROBERT),
)


@pytest.mark.parametrize("case", ROWS, ids=lambda case: f"{case.name}-{case.task}")
def test_logits(case: Row, tmp_path: Path) -> None:
    model: Any = enliven(case.model())
    model.save_pretrained(tmp_path)
    ids, mask = batch(LENGTHS, 97)
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).logits
    head = assert_output(tmp_path, expected, ids, mask)
    assert head.task == case.task


def test_eurobert_refuses_to_pool_logits(tmp_path: Path) -> None:
    EuroBertForSequenceClassification(EuroBertConfig(**EUROBERT)).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedConfig, match="classifier_pooling='late', but the adapter knows bos, mean"):
        load_head(tmp_path)


def edit_config(folder: Path, edit: Callable[[Config], Config]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))


def rewrite(folder: Path, prefix: str, extra: dict[str, Tensor]) -> None:
    """``prefix`` before every stored name, and ``extra`` at the root."""
    path = folder / "model.safetensors"
    save_file({prefix + name: tensor for name, tensor in load_file(path).items()} | extra, path)


def pooled(states: Tensor, mask: Tensor, how: str) -> Tensor:
    """NeMo Automodel's `pool`, text by text."""
    rows = [state[: int(count)] for state, count in zip(states, mask.sum(1), strict=True)]
    pick = {"avg": lambda row: row.mean(0), "cls": lambda row: row[0], "last": lambda row: row[-1]}
    return torch.stack([pick[how](row) for row in rows])


def saved_nemotron(folder: Path, facts: Config) -> tuple[Tensor, Tensor, Tensor]:
    """A bidirectional Llama stored as NVIDIA does, config.json changed by ``facts``; ids, mask, hidden states."""
    model: Any = enliven(LlamaModel(LlamaConfig(**DECODER | {"rope_parameters": LLAMA3, "is_causal": False})))
    model.save_pretrained(folder)
    edit_config(folder, lambda config: llama_bidirec(config) | facts)
    ids, mask = batch(LENGTHS, 97)
    with torch.inference_mode():
        return ids, mask, model(input_ids=ids, attention_mask=mask).last_hidden_state


@pytest.mark.parametrize("how", ["avg", "cls", "last"])
def test_the_nemotron_reranker_divides_by_its_temperature(how: str, tmp_path: Path) -> None:
    facts = {
        "architectures": ["LlamaBidirectionalForSequenceClassification"],
        "id2label": {"0": "LABEL_0"},
        "pooling": how,
        "temperature": 0.25,
    }
    ids, mask, states = saved_nemotron(tmp_path, facts)
    score = torch.randn(1, 32)
    rewrite(tmp_path, "model.", {"score.weight": score})
    expected = pooled(states, mask, how) @ score.T / 0.25
    assert assert_output(tmp_path, expected, ids, mask).task == "rerank"


@pytest.mark.parametrize("how", ["avg", "cls", "last"])
def test_nemotron_embeds_with_its_own_pooling(how: str, tmp_path: Path) -> None:
    ids, mask, states = saved_nemotron(tmp_path, {"pooling": how})
    assert assert_output(tmp_path, pooled(states, mask, how), ids, mask).task == "embed"


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"pooling": "weighted_avg"}, "pooling='weighted_avg', but the adapter knows avg, cls, last"),
        ({"temperature": 0.0}, "temperature=0, but the adapter needs a positive number"),
    ],
)
def test_nemotron_refusals(facts: Config, message: str, tmp_path: Path) -> None:
    saved_nemotron(tmp_path, {"architectures": ["LlamaBidirectionalForSequenceClassification"]} | facts)
    with pytest.raises(UnsupportedConfig, match=message):
        load_head(tmp_path)


def native(config: Config) -> Config:
    return config


def without_width(config: Config) -> Config:
    """Such a revision is known from other readers' tests."""
    return {key: value for key, value in voyage(config).items() if key != "num_labels"}


@pytest.mark.parametrize("edit", [voyage, without_width, native])
@pytest.mark.parametrize("moved", [False, True], ids=["linear", "dense"])
def test_voyage_projects_every_token(edit: Callable[[Config], Config], moved: bool, tmp_path: Path) -> None:
    """mean(linear(tokens)), normalised: `linear.weight` at the root, or moved to a Dense module; both spellings."""
    model: Any = enliven(Qwen3Model(Qwen3Config(**WIDE | {"is_causal": False})))
    model.save_pretrained(tmp_path)
    edit_config(tmp_path, lambda config: edit(config) | ({"num_labels": 24} if edit is voyage else {}))
    linear = torch.randn(24, 32)
    rewrite(tmp_path, "model.", {} if moved else {"linear.weight": linear})
    sentence_files(tmp_path, linear if moved else None)
    ids, mask = batch(LENGTHS, 97)
    with torch.inference_mode():
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    expected = F.normalize(pooled(states @ linear.T, mask, "avg"), dim=-1)
    head = assert_output(tmp_path, expected, ids, mask)
    assert head.task == "embed"


def sentence_files(folder: Path, dense: Tensor | None) -> None:
    """Mean pooling, ``dense`` if any, Normalize, as sentence-transformers stores them."""
    kinds = ["Transformer", "Pooling", *(["Dense"] if dense is not None else []), "Normalize"]
    entries = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    pooling = {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    if dense is not None:
        facts = {
            "in_features": 32,
            "out_features": 24,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
        (folder / "2_Dense").mkdir()
        (folder / "2_Dense/config.json").write_text(json.dumps(facts))
        save_file({"linear.weight": dense}, folder / "2_Dense/model.safetensors")


def test_voyage_refuses_another_width(tmp_path: Path) -> None:
    Qwen3Model(Qwen3Config(**WIDE | {"is_causal": False})).save_pretrained(tmp_path)
    edit_config(tmp_path, voyage)
    rewrite(tmp_path, "model.", {"linear.weight": torch.randn(24, 32)})
    with pytest.raises(UnsupportedConfig, match="num_labels=2048, but the adapter needs 24"):
        load_head(tmp_path)


def test_a_stored_lm_head_is_left_alone(tmp_path: Path) -> None:
    """gte-Qwen2 and the like: `model.` before every name, an untied lm_head beside them."""
    model: Any = enliven(Qwen2ForCausalLM(Qwen2Config(**DECODER)))
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" in load_file(tmp_path / "model.safetensors")
    ids, mask = batch(LENGTHS, 97)
    with torch.inference_mode():
        states = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
    head = assert_output(tmp_path, pooled(states, mask, "last"), ids, mask)
    assert head.pooling == ("last",)
