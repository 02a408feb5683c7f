"""Baseten's token classification."""

from typing import Any

import httpx
import numpy as np
import pytest
from tests.runtime.http.conftest import LABELS
from tests.runtime.http.test_tei import ids, post
from tests.runtime.tiny import CLS, SEP, VOCAB, expected


def logits(text: str) -> np.ndarray[Any, Any]:
    return expected(ids(text), task="token-classify", classes=len(LABELS))


def test_every_token_comes_with_its_label(http: httpx.Client) -> None:
    (found,) = post(http, "/predict_tokens", inputs=["Hello world"])
    scores = logits("hello world")
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert [entry["token_id"] for entry in found] == [CLS, VOCAB["hello"], VOCAB["world"], SEP]
    assert [(entry["token"], entry["start"], entry["end"]) for entry in found[1:3]] == [
        ("Hello", 0, 5),
        ("world", 6, 11),
    ]
    for entry, row in zip(found, probabilities, strict=True):
        assert entry["results"] == {LABELS[row.argmax()]: pytest.approx(row.max(), abs=1e-6)}


def test_raw_scores_are_every_labels_logit(http: httpx.Client) -> None:
    (found,) = post(http, "/predict_tokens", inputs=["hello"], raw_scores=True)
    for entry, row in zip(found, logits("hello"), strict=True):
        assert list(entry["results"]) == list(LABELS)
        np.testing.assert_allclose(list(entry["results"].values()), row, atol=1e-6)


@pytest.mark.parametrize("strategy", ["simple", "first", "average", "max"])
def test_entities_are_those_of_the_python_api(http: httpx.Client, models: Any, strategy: Any) -> None:
    texts = ["hello world a b c", "z y . x hello", "q"]
    for found, theirs in zip(
        post(http, "/predict_tokens", inputs=texts, aggregation_strategy=strategy),
        models["tags"].entities(texts, strategy=strategy),
        strict=True,
    ):
        assert [(e["token"], e["start"], e["end"], e["token_id"]) for e in found] == [
            (entity.text, entity.start, entity.end, 0) for entity in theirs
        ]
        for entry, entity in zip(found, theirs, strict=True):
            assert entry["results"] == {entity.label: pytest.approx(entity.score, abs=1e-6)}


def test_two_texts_are_two_documents_and_so_are_lists_of_one(http: httpx.Client) -> None:
    flat = post(http, "/predict_tokens", inputs=["a", "b"])
    assert flat == post(http, "/predict_tokens", inputs=[["a"], ["b"]])
    assert [len(found) for found in flat] == [3, 3]
    refused = post(http, "/predict_tokens", 422, inputs=[["a", "b"]])
    assert "2 texts in one list" in refused["error"]


def test_long_texts_are_cut_or_read_in_windows(http: httpx.Client) -> None:
    text = "hello " * 40
    answer = http.post("/predict_tokens", json={"inputs": [text], "aggregation_strategy": "simple"})
    assert answer.headers["x-truncated"] == "1"
    assert max(entry["end"] for entry in answer.json()[0]) < 100
    body = {"inputs": [text], "aggregation_strategy": "simple", "stride": 4}
    answer = http.post("/predict_tokens", json=body)
    assert "x-truncated" not in answer.headers
    assert max(entry["end"] for entry in answer.json()[0]) == len(text) - 1
    post(http, "/predict_tokens", 422, inputs=[text], truncate=False)
    post(http, "/predict_tokens", 422, inputs=[text], stride=4)
    post(http, "/predict_tokens", 422, inputs=[text], stride=14, aggregation_strategy="max")


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": ["a"], "aggregation_strategy": "best"},
        {"inputs": "a"},
        {"inputs": [["a", 1]]},
        {"inputs": [[]]},
        {"inputs": ["a"], "stride": -1},
    ],
)
def test_refused(http: httpx.Client, body: dict[str, Any]) -> None:
    assert post(http, "/predict_tokens", 422, **body)["error_type"] == "Validation"


def test_an_empty_text_is_refused(http: httpx.Client) -> None:
    for inputs in ([], [""], [["a"], [""]]):
        assert post(http, "/predict_tokens", 400, inputs=inputs)["error_type"] == "Empty"
