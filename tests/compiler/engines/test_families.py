"""Every family compiles to a TensorRT-RTX plan for four SMs, each attention one fused kernel; 8B graphs without data."""

from dataclasses import replace
from pathlib import Path

import pytest

from bei.adapters.registry import ADAPTERS, adapter_for
from bei.compiler.build import BuildOptions, compile_bundle
from bei.compiler.checkpoint import load
from bei.compiler.checkpoint.checkpoint import open_checkpoint
from bei.compiler.engines import tensorrt
from bei.compiler.engines.build import RTX_DEFAULT
from bei.compiler.lowering.emit import emit
from bei.compiler.lowering.policy import TENSORRT
from bei.compiler.lowering.signature import signature
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
LARGE = (
    "nvidia/llama-embed-nemotron-8b",
    "Salesforce/SFR-Embedding-2_R",
    "Alibaba-NLP/gte-Qwen2-7B-instruct",
    "nomic-ai/nomic-embed-code",
)
NOT_IN_THE_ZOO = {"distilbert", "eurobert", "jina-v3", "llama"}


def test_every_family_of_the_zoo_is_here() -> None:
    assert set(FAMILIES) == {adapter.name for adapter in ADAPTERS} - NOT_IN_THE_ZOO


@pytest.mark.skipif(tensorrt.available("tensorrt-rtx") is not None, reason="needs TensorRT-RTX")
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_fused_on_every_sm(family: str, tmp_path: Path) -> None:
    write_fixture(facts_of(FAMILIES[family]), tmp_path / "checkpoint")
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
