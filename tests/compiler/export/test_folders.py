"""ONNX and sentence-transformers folders, read by the libraries they are for (where they can be installed)."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tokenizers

import bei
from bei.compiler.build import compile_bundle
from bei.compiler.export.cli import export, main
from bei.compiler.options import BuildOptions
from bei.compiler.zoo.fact_files import facts_of
from bei.compiler.zoo.fixture import write_fixture
from bei.errors import BundleError, InputError
from bei.runtime.bundle import open_bundle
from tests.runtime.tiny import write_bundle

TEXTS = ["hello world", "A longer text, with Zürich and 東京. " * 40, "x"]


def compiled(tmp_path: Path, repo: str) -> Path:
    """A bundle of a stand-in for ``repo``."""
    write_fixture(facts_of(repo), tmp_path / "checkpoint")
    options = BuildOptions(
        repo=str(tmp_path / "checkpoint"), out=tmp_path / "b.bundle", targets=("onnxruntime-cpu",)
    )
    return compile_bundle(options)[0]


def vectors(bundle: Path, texts: list[str]) -> Any:
    with bei.load(bundle, allow_unverified=True) as model:
        return model.encode(texts, prompt="")


@pytest.mark.parametrize(
    "repo",
    ["sentence-transformers/all-MiniLM-L6-v2", "Qwen/Qwen3-Embedding-0.6B", "google/embeddinggemma-300m"],
)
def test_an_onnx_folder_needs_tokenizers_and_onnxruntime_alone(tmp_path: Path, repo: str) -> None:
    bundle, out = compiled(tmp_path, repo), tmp_path / "onnx"
    export(open_bundle(bundle), "onnx", out, allow_unverified=True)
    rows = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json")).encode_batch(TEXTS)
    session = onnxruntime.InferenceSession(out / "model.onnx")
    feeds = {
        "input_ids": np.array([row.ids for row in rows]),
        "attention_mask": np.array([row.attention_mask for row in rows]),
        "token_type_ids": np.array([row.type_ids for row in rows]),
    }
    taken = {value.name: feeds[value.name] for value in session.get_inputs()}
    (got,) = session.run(["sentence_embedding"], taken)
    np.testing.assert_allclose(got, vectors(bundle, TEXTS), atol=2e-6)


def test_truncation_and_padding_are_inside_the_tokenizer(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b")
    out = tmp_path / "onnx"
    export(open_bundle(bundle), "onnx", out)
    tokenizer = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    assert tokenizer.truncation is not None
    assert tokenizer.truncation["max_length"] == 16
    assert tokenizer.padding is not None
    assert tokenizer.padding["length"] is None
    assert "tiny" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    "repo",
    ["sentence-transformers/all-MiniLM-L6-v2", "Qwen/Qwen3-Embedding-0.6B", "google/embeddinggemma-300m"],
)
def test_sentence_transformers_gets_the_same_vectors(tmp_path: Path, repo: str) -> None:
    """Its ONNX back end calls optimum, which does not install beside transformers 5; what that gives is the graph's
    last hidden state, and everything after it is sentence-transformers' own."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    bundle, out = compiled(tmp_path, repo), tmp_path / "st"
    export(open_bundle(bundle), "sentence-transformers", out, allow_unverified=True)
    library = sentence_transformers.SentenceTransformer(
        str(out), device="cpu", local_files_only=True, model_kwargs={"dtype": "float32"}
    )
    got = through_onnx(library, out / "model.onnx", TEXTS)
    np.testing.assert_allclose(got, library.encode(TEXTS, prompt=""), atol=3e-6)
    np.testing.assert_allclose(got, vectors(bundle, TEXTS), atol=3e-6)


def through_onnx(library: Any, graph: Path, texts: list[str]) -> Any:
    import torch

    features = library.preprocess(texts)
    session = onnxruntime.InferenceSession(graph)
    feeds = {
        value.name: features[value.name].numpy()
        if value.name in features
        else np.zeros_like(features["input_ids"].numpy())
        for value in session.get_inputs()
    }
    (hidden,) = session.run(["last_hidden_state"], feeds)
    features["token_embeddings"] = torch.from_numpy(hidden)
    for module in list(library)[1:]:
        features = module(features)
    return features["sentence_embedding"].detach().numpy()


def test_a_plain_checkpoint_gets_the_modules_that_say_what_the_bundle_does(tmp_path: Path) -> None:
    write_fixture(facts_of("answerdotai/ModernBERT-base"), tmp_path / "c")
    compile_bundle(
        BuildOptions(
            repo=str(tmp_path / "c"), out=tmp_path / "b", targets=("onnxruntime-cpu",), max_length=32
        )
    )
    export(open_bundle(tmp_path / "b"), "sentence-transformers", tmp_path / "st", allow_unverified=True)
    library = pytest.importorskip("sentence_transformers").SentenceTransformer(
        str(tmp_path / "st"), device="cpu"
    )
    assert library.max_seq_length == 32
    got = through_onnx(library, tmp_path / "st" / "model.onnx", TEXTS)
    np.testing.assert_allclose(got, vectors(tmp_path / "b", TEXTS), atol=3e-6)


def test_a_reranker_for_the_cross_encoder_ends_at_the_logits(tmp_path: Path) -> None:
    bundle = compiled(tmp_path, "BAAI/bge-reranker-v2-m3")
    export(open_bundle(bundle), "sentence-transformers", tmp_path / "st", allow_unverified=True)
    session = onnxruntime.InferenceSession(tmp_path / "st" / "model.onnx")
    assert [value.name for value in session.get_outputs()] == ["logits"]


def test_checkpoint_code_is_never_shipped(tmp_path: Path) -> None:
    bundle = compiled(tmp_path, "nomic-ai/nomic-embed-text-v1.5")
    with pytest.raises(BundleError, match="--format onnx"):
        export(open_bundle(bundle), "sentence-transformers", tmp_path / "st", allow_unverified=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.bundle", "checkpoint"]


def test_refusals(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InputError, match="exists already"):
        export(open_bundle(bundle), "onnx", tmp_path / "full")
    with pytest.raises(InputError, match="does not exist"):
        export(open_bundle(bundle), "onnx", tmp_path / "no" / "where")
    with pytest.raises(BundleError, match="no engine for 'tensorrt-sm90'; the bundle has onnxruntime-cpu"):
        export(open_bundle(bundle), "triton", tmp_path / "x", target="tensorrt-sm90")


def test_an_unproven_engine_is_not_exported_unless_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = compiled(tmp_path, "sentence-transformers/all-MiniLM-L6-v2")
    arguments = [str(bundle), "--format", "onnx", "--out", str(tmp_path / "o")]
    assert main(arguments) == 2
    assert "parity verdict 'not run'" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    assert main([*arguments, "--allow-unverified"]) == 0
    assert (tmp_path / "o" / "model.onnx").is_file()
