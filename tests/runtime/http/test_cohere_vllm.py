"""Cohere's and Jina's reranking; vLLM's classification and scores."""

from typing import Any

import httpx
import numpy as np
import pytest
from tests.runtime.http.conftest import MOODS, services
from tests.runtime.http.test_tei import ids, logits, relevance, softmax
from tests.runtime.serving import serving
from tests.runtime.tiny import expected

from bei.runtime.model import Model

DOCUMENTS = ["a b", "hello world", "z", "query"]


def post(http: httpx.Client, path: str, status: int = 200, **body: Any) -> Any:
    answer = http.post(path, json=body)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert answer.json()["error"]["message"] == answer.json()["message"]
    return answer.json()


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_make_it_coheres(http: httpx.Client, path: str) -> None:
    answer = post(http, path, query="hello", documents=DOCUMENTS, model="rerank")
    assert answer["id"].startswith("rerank-")
    assert answer["model"] == "rerank"
    assert answer["usage"]["total_tokens"] == sum(len(ids("hello", text)) for text in DOCUMENTS)
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    for result in answer["results"]:
        assert set(result) == {"index", "relevance_score"}
        logit = relevance("hello", DOCUMENTS[result["index"]])
        assert result["relevance_score"] == pytest.approx(sigmoid(logit), abs=1e-6)


def test_top_n_and_the_documents_come_back(http: httpx.Client) -> None:
    documents = ["a", {"text": "hello", "title": "t"}, "z"]
    every = post(http, "/v1/rerank", query="a", documents=documents)["results"]
    best = post(http, "/v1/rerank", query="a", documents=documents, top_n=2, return_documents=True)["results"]
    assert [result["index"] for result in best] == [result["index"] for result in every[:2]]
    texts = ["a", "hello", "z"]
    assert [result["document"] for result in best] == [{"text": texts[result["index"]]} for result in best]
    assert len(post(http, "/v1/rerank", query="a", documents=documents, top_n=99)["results"]) == 3


def test_of_long_documents_so_many_tokens_are_read(http: httpx.Client) -> None:
    documents = ["a b c d e", "z"]
    cut = post(http, "/v2/rerank", query="q", documents=documents, max_tokens_per_doc=2)
    by_index = {result["index"]: result["relevance_score"] for result in cut["results"]}
    assert by_index[0] == pytest.approx(sigmoid(relevance("q", "a b")), abs=1e-6)
    assert by_index[1] == pytest.approx(sigmoid(relevance("q", "z")), abs=1e-6)
    assert cut["usage"]["total_tokens"] == len(ids("q", "a b")) + len(ids("q", "z"))


@pytest.mark.parametrize(
    "body",
    [
        {"query": "a"},
        {"documents": ["a"]},
        {"query": "a", "documents": []},
        {"query": "", "documents": ["a"]},
        {"query": "a", "documents": [1]},
        {"query": "a", "documents": [{"title": "t"}]},
        {"query": "a", "documents": ["a"], "top_n": 0},
        {"query": "a", "documents": ["a"], "max_tokens_per_doc": 0},
        {"query": "a", "documents": ["a"] * 2049},
    ],
)
def test_rerank_refuses(http: httpx.Client, body: dict[str, Any]) -> None:
    post(http, "/v1/rerank", 400, **body)


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
def test_classify_gives_every_probability(http: httpx.Client, path: str) -> None:
    answer = post(http, path, input=["a b", "hello"], model="classify")
    assert (answer["object"], answer["model"]) == ("list", "classify")
    assert answer["usage"]["prompt_tokens"] == 4 + 3
    for item, text in zip(answer["data"], ["a b", "hello"], strict=True):
        expected_probabilities = softmax(logits(text))
        np.testing.assert_allclose(item["probs"], expected_probabilities, atol=1e-6)
        assert item["label"] == MOODS[expected_probabilities.argmax()]
        assert item["num_classes"] == 3
    post(http, path, 400, input=[])
    post(http, path, 400, input=["a"], model="embed")


def test_labels_that_exclude_nothing_get_a_sigmoid_each(models: dict[str, Model]) -> None:
    with serving(*services(models, "moods")) as url, httpx.Client(base_url=url) as http:
        probabilities = 1 / (1 + np.exp(-logits("a b")))
        np.testing.assert_allclose(
            post(http, "/classify", input="a b")["data"][0]["probs"], probabilities, atol=1e-6
        )
        predicted = http.post("/predict", json={"inputs": "a b"}).json()
        assert {p["label"]: pytest.approx(p["score"], abs=1e-6) for p in predicted} == dict(
            zip(MOODS, probabilities.tolist(), strict=True)
        )


def test_score_of_a_reranker(http: httpx.Client) -> None:
    for body in (
        {"text_1": "hello", "text_2": ["a", "z"]},
        {"queries": "hello", "documents": ["a", "z"]},
        {"text_1": ["hello", "hello"], "text_2": ["a", "z"]},
    ):
        answer = post(http, "/score", **body)
        assert [item["index"] for item in answer["data"]] == [0, 1]
        for item, text in zip(answer["data"], ["a", "z"], strict=True):
            assert item["score"] == pytest.approx(sigmoid(relevance("hello", text)), abs=1e-6)


def test_score_of_an_embedding_model_is_the_cosine(http: httpx.Client) -> None:
    answer = post(http, "/v1/score", model="embed", text_1="hello", text_2=["a", "hello", "a"])
    cosine = float(expected(ids("hello")) @ expected(ids("a")))
    got = [item["score"] for item in answer["data"]]
    np.testing.assert_allclose(got, [cosine, 1, cosine], atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        {"text_1": "a"},
        {"text_2": "a"},
        {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]},
        {"text_1": [], "text_2": ["a"]},
        {"text_1": "a", "text_2": ["b"], "truncate_prompt_tokens": 17},
    ],
)
def test_score_refuses(http: httpx.Client, body: dict[str, Any]) -> None:
    post(http, "/score", 400, **body)
