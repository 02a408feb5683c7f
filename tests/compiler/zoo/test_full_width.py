"""Each family at its real width, one stack of its kinds of layers: the widths, heads and windows that small models lack.

Vocabularies are small: their tables would be most of the weights and none of the arithmetic.
"""

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from bei.adapters.registry import ADAPTERS, adapter_for
from bei.compiler.checkpoint.checkpoint import open_checkpoint
from bei.compiler.checkpoint.load import load_model
from bei.compiler.lowering.policy import ONNXRUNTIME_CPU
from bei.compiler.lowering.torch_ops import run_torch
from bei.compiler.parity.native import translated
from bei.compiler.parity.quiet import quiet
from bei.compiler.zoo.fact_files import facts_of
from bei.compiler.zoo.fixture import FixtureOptions, write_fixture
from tests.adapters.tiny import HIDDEN_STATES, Loaded, assert_near, batch, run_onnx

SHORT = (1, 7, 40)
FAMILIES: dict[str, tuple[str, int | None, tuple[int, ...]]] = {
    "bert": ("BAAI/bge-large-en-v1.5", None, SHORT),
    "mpnet": ("sentence-transformers/all-mpnet-base-v2", None, (1, 7, 140)),
    "roberta": ("FacebookAI/roberta-base", None, SHORT),
    "gte": ("Alibaba-NLP/gte-large-en-v1.5", None, SHORT),
    "modernbert": ("answerdotai/ModernBERT-base", None, (1, 64, 65, 66, 129)),
    "nomic-bert": ("nomic-ai/nomic-embed-text-v2-moe", None, SHORT),
    "jina-bert": ("jinaai/jina-embeddings-v2-base-en", None, SHORT),
    "jina-bert-code": ("jinaai/jina-embeddings-v2-base-code", None, SHORT),
    "gemma3": ("google/embeddinggemma-300m", None, (1, 256, 257, 258)),
    "qwen2": ("Alibaba-NLP/gte-Qwen2-7B-instruct", 1, SHORT),
    "qwen3": ("voyageai/voyage-4-nano", None, SHORT),
    "llama_bidirec": ("nvidia/llama-embed-nemotron-8b", 1, SHORT),
    "mistral": ("Salesforce/SFR-Embedding-2_R", 1, SHORT),
}
"""Adapter → a wide model of it, layers (None: every kind), lengths: one token, around a window, more than a few."""
NOT_IN_THE_ZOO = {"distilbert", "eurobert", "jina-v3", "llama"}


def test_every_family_is_here() -> None:
    assert set(FAMILIES) == {adapter.name for adapter in ADAPTERS} - NOT_IN_THE_ZOO


@pytest.mark.parametrize("family", FAMILIES)
def test_three_rungs_at_full_width(family: str, tmp_path: Path) -> None:
    """TorchOps equals the reference; the graph, padded and packed, equals TorchOps."""
    repo, layers, lengths = FAMILIES[family]
    options = FixtureOptions(full_width=True, small_vocabulary=True, layers=layers)
    write_fixture(facts_of(repo), tmp_path, options)
    checkpoint = open_checkpoint(str(tmp_path))
    adapter = adapter_for(checkpoint.config)
    assert adapter.name == family
    model = load_model(checkpoint, adapter)
    encoder = {name: weight for name, weight in model.weights.items() if not name.startswith("head.")}
    loaded = Loaded(adapter=adapter, cfg=model.cfg, weights=encoder, folder=tmp_path)
    ids, mask = batch(lengths, model.cfg.vocab)
    if (pad := model.cfg.position_pad) is not None:
        ids = ids.masked_fill(mask == 0, pad)

    expected, real = reference(tmp_path, ids, mask), mask.bool()
    ours = run_torch(loaded.cfg, HIDDEN_STATES, loaded.weights, ids, mask)
    assert_near(ours[real].numpy(), expected[real])
    for policy in (ONNXRUNTIME_CPU, replace(ONNXRUNTIME_CPU, layout="packed")):
        assert_near(run_onnx(loaded, ids, mask, policy=policy)[real], ours[real])
        gc.collect()


def reference(folder: Path, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Hidden states [B, L, D] of transformers, or of the independent reference; freed before ours are computed."""
    with quiet(), translated(folder) as readable, torch.inference_mode():
        model = AutoModel.from_pretrained(readable, trust_remote_code=False, dtype=torch.float32).eval()
        states: torch.Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
    del model
    gc.collect()
    return states
