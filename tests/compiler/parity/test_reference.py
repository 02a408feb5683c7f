"""The reference gives what its libraries give, quietly, offline and only where they are right."""

import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from bei.compiler.parity.quiet import quiet
from bei.compiler.parity.reference import (
    Classifier,
    Embedder,
    Tagger,
    batches,
    hugging_face,
)
from bei.compiler.parity.texts import Sample, builtin
from bei.errors import ParityError
from bei.runtime.entities import STRATEGIES, Strategy
from tests.compiler.parity.tiny import MINILM, classifier, tagger

SOME = [builtin("embed", 256)[i] for i in (0, 70, 85, 110, 120, 130, 140, 150, 160, 172)]


def sample(text: str, pair: str | None = None, prompt: str | None = None) -> Sample:
    return Sample(kind="test", text=text, pair=pair, prompt=prompt)


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    reference = hugging_face(MINILM, "embed")
    assert isinstance(reference, Embedder)
    return reference


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    reference = hugging_face(classifier(tmp_path_factory.mktemp("rerank"), 1), "rerank")
    assert isinstance(reference, Classifier)
    return reference


@pytest.fixture(scope="module")
def ner(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    reference = hugging_face(tagger(tmp_path_factory.mktemp("ner")), "token-classify")
    assert isinstance(reference, Tagger)
    return reference


def test_embeddings_are_those_of_sentence_transformers(embedder: Embedder) -> None:
    with quiet():
        model = SentenceTransformer(str(MINILM), device="cpu")
        alone = [model.encode([s.text], show_progress_bar=False)[0] for s in SOME]
    np.testing.assert_allclose(np.stack(embedder.outputs(SOME)), np.stack(alone), atol=1e-6)
    assert embedder.outputs(SOME)[0].dtype == np.float32
    assert embedder.model.dtype == torch.float32


def test_token_ids(embedder: Embedder) -> None:
    assert embedder.token_ids([sample("hello world")]) == [[101, 7592, 2088, 102]]
    (long,) = embedder.token_ids([sample("word " * 400)])
    assert len(long) == 256


def test_max_length_only_shortens() -> None:
    shorter, longer = (hugging_face(MINILM, "embed", max_length=n) for n in (16, 10_000))
    text = [sample("word " * 400)]
    assert [len(reference.token_ids(text)[0]) for reference in (shorter, longer)] == [16, 256]


def test_prompts_are_the_checkpoints_own(embedder: Embedder) -> None:
    embedder.model.prompts["query"] = "find: "
    try:
        prompted, written = [sample("a boat", prompt="query")], [sample("find: a boat")]
        assert embedder.token_ids(prompted) == embedder.token_ids(written)
        np.testing.assert_allclose(embedder.outputs(prompted)[0], embedder.outputs(written)[0], atol=1e-6)
        with pytest.raises(ParityError, match="no prompt named 'passage'"):
            embedder.outputs([sample("a", prompt="passage")])
    finally:
        embedder.model.prompts["query"] = ""


def test_hidden_states(embedder: Embedder) -> None:
    states = embedder.hidden_states(sample("hello world"))
    assert list(states) == ["embed", *(f"layers.{i}" for i in range(5)), "output"]
    assert {state.shape for state in states.values()} == {(4, 384)}
    pooled = states["output"].mean(axis=0)
    vector = embedder.outputs([sample("hello world")])[0]
    np.testing.assert_allclose(pooled / np.linalg.norm(pooled), vector, atol=1e-6)


def test_rerank_logits(reranker: Classifier) -> None:
    pairs = [sample("query", "a short document"), sample("query", "word " * 30), sample("other", "x")]
    ours = reranker.outputs(pairs)
    for pair, logits in zip(pairs, ours, strict=True):
        inputs = reranker.tokenizer(pair.text, pair.pair, return_tensors="pt")
        with torch.inference_mode():
            want = reranker.model(**inputs).logits[0].numpy()
        np.testing.assert_allclose(logits, want, atol=1e-5)
        assert logits.shape == (1,)


def test_pairs_and_single_texts_keep_their_order(reranker: Classifier) -> None:
    mixed = [sample("one"), sample("two", "three"), sample("four five six"), sample("seven", "eight")]
    np.testing.assert_allclose(
        np.stack(reranker.outputs(mixed)), np.stack([reranker.outputs([s])[0] for s in mixed]), atol=1e-5
    )


def test_pairs_are_cut_at_the_position_table(reranker: Classifier) -> None:
    assert reranker.max_length == 64
    assert len(reranker.token_ids([sample("a " * 80, "b " * 80)])[0]) == 64


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_spans_are_those_of_the_transformers_pipeline(ner: Tagger, strategy: Strategy) -> None:
    texts = [s for s in builtin("token-classify", 64) if s.kind in ("names", "whitespace")]
    texts = [s for s in texts if len(ner.token_ids([s])[0]) < 64]
    with quiet():
        whole = pipeline("token-classification", model=ner.model, tokenizer=ner.tokenizer, device=-1)
        answers: Any = whole([s.text for s in texts], aggregation_strategy=strategy)
    want = [
        [(e["start"], e["end"], e.get("entity_group", e.get("entity"))) for e in answer] for answer in answers
    ]
    assert ner.spans(texts, ner.outputs(texts), strategy) == want
    assert sum(map(len, want)) > 30


def test_tagger_gives_one_row_a_token(ner: Tagger) -> None:
    texts = [sample("Ada met Charles in London."), sample("word " * 100), sample("x")]
    assert [logits.shape for logits in ner.outputs(texts)] == [(len(ids), 5) for ids in ner.token_ids(texts)]


def test_nothing_is_fetched_or_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the reference went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    hugging_face(MINILM, "embed").outputs([sample("a text")])
    assert capfd.readouterr() == ("", "")


def test_quiet_leaves_everything_as_it_was() -> None:
    from transformers.utils import logging

    settings: Any = logging
    before = (settings.get_verbosity(), settings.is_progress_bar_enabled(), constants.HF_HUB_OFFLINE)
    with pytest.raises(ZeroDivisionError), quiet():
        assert constants.HF_HUB_OFFLINE
        assert not settings.is_progress_bar_enabled()
        raise ZeroDivisionError
    assert before == (
        settings.get_verbosity(),
        settings.is_progress_bar_enabled(),
        constants.HF_HUB_OFFLINE,
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert", "position_embedding_type": "relative_key"}, "='relative_key'"),
        ({"model_type": "mistral", "use_bidirectional_attention": True}, "its mistral ignores"),
        ({"model_type": "nomic_bert", "n_embd": 768}, "config.json lacks"),
        ({"model_type": "no_such_model"}, "transformers cannot load it"),
        ([], "got list, need an object"),
    ],
)
def test_checkpoints_that_transformers_misreads(tmp_path: Path, config: object, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ParityError, match=message):
        hugging_face(tmp_path, "classify")


def test_no_folder_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"no config\.json"):
        hugging_face(tmp_path / "none", "embed")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ParityError, match="cannot be read"):
        hugging_face(tmp_path, "embed")


def test_a_head_that_is_not_in_the_file_is_refused() -> None:
    with pytest.raises(ParityError, match=r"2 tensors .*classifier\.bias.*would make them up"):
        hugging_face(MINILM, "classify")


def test_pickles_are_not_read(tmp_path: Path) -> None:
    shutil.copytree(MINILM, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({}, tmp_path / "m/pytorch_model.bin")
    with pytest.raises(ParityError, match="cannot load it"):
        hugging_face(tmp_path / "m", "embed")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ParityError, match=r"pip install 'bei\[parity\]'"):
        hugging_face(MINILM, "embed")


def test_batches_are_full_but_not_too_full() -> None:
    lengths = [3, 100, 7, 7, 50, 1, 300]
    found = batches(lengths, 200)
    assert sorted(i for batch in found for i in batch) == list(range(7))
    assert found[0] == [6]  # longer than the budget: alone
    assert all(len(batch) * max(lengths[i] for i in batch) <= 200 for batch in found[1:])
    assert batches([], 10) == []


def test_the_classifier_is_the_one_transformers_loads(tmp_path: Path) -> None:
    """The tiny checkpoint is not degenerate: its logits differ from text to text."""
    folder = classifier(tmp_path, 3)
    reference = hugging_face(folder, "classify")
    texts = [sample("one thing"), sample("quite another matter")]
    a, b = reference.outputs(texts)
    assert np.abs(a - b).max() > 0.05
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        inputs = AutoTokenizer.from_pretrained(folder)("one thing", return_tensors="pt")
    with torch.inference_mode():
        np.testing.assert_allclose(a, model(**inputs).logits[0].numpy(), atol=1e-5)
