"""Text Embeddings Inference's routes, as its own server answers them."""

from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from tests.runtime.http.conftest import MOODS
from tests.runtime.tiny import CLS, DIM, SEP, VOCAB, expected

from bei.runtime import service
from bei.runtime.model import Model


def ids(*texts: str) -> list[int]:
    """[CLS] a [SEP], with a pair b [SEP]."""
    words = [[*(VOCAB[word] for word in text.split()), SEP] for text in texts]
    return [CLS, *(token for part in words for token in part)]


def post(http: httpx.Client, path: str, status: int = 200, **body: Any) -> Any:
    answer = http.post(path, json=body)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert set(answer.json()) == {"error", "error_type"}
    return answer.json()


# Embeddings


@pytest.mark.parametrize("inputs", ["hello", ["hello"], [ids("hello")], ids("hello")])
def test_embed_takes_texts_and_ids(http: httpx.Client, inputs: Any) -> None:
    np.testing.assert_allclose(post(http, "/embed", inputs=inputs), [expected(ids("hello"))], atol=1e-6)


def test_embed_reads_its_options(http: httpx.Client) -> None:
    (asked,) = post(http, "/embed", inputs="a", prompt_name="query")
    np.testing.assert_allclose(asked, expected(ids("query : a")), atol=1e-6)
    (cut,) = post(http, "/embed", inputs="a", dimensions=2)
    whole = expected(ids("a"))[:2]
    np.testing.assert_allclose(cut, whole / np.linalg.norm(whole), atol=1e-6)
    assert post(http, "/embed", inputs="a", dimensions=DIM) == post(http, "/embed", inputs="a")
    (left,) = post(
        http, "/embed", inputs="z " * 9 + "a b c d e f g h i j k l m n", truncation_direction="Left"
    )
    np.testing.assert_allclose(left, expected(ids("a b c d e f g h i j k l m n")), atol=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"inputs": ""}, 400, "Empty"),
        ({"inputs": []}, 400, "Empty"),
        ({"inputs": ["a", ""]}, 400, "Empty"),
        ({"inputs": ["a"] * 2049}, 422, "Validation"),
        ({"inputs": "a " * 50, "truncate": False}, 422, "Validation"),
        ({"inputs": "a", "dimensions": 0}, 422, "Validation"),
        ({"inputs": "a", "dimensions": 9}, 422, "Validation"),
        ({"inputs": "a", "prompt_name": "nope"}, 422, "Validation"),
        ({"inputs": [5, 6], "prompt_name": "query"}, 422, "Validation"),
        ({"inputs": "a", "normalize": False}, 422, "Validation"),
        ({"inputs": 5}, 422, "Validation"),
        ({"inputs": [63]}, 422, "Validation"),
        ({"inputs": [-1]}, 422, "Validation"),
        ({"inputs": "a", "truncation_direction": "up"}, 422, "Validation"),
        ({}, 422, "Validation"),
    ],
)
def test_embed_refuses(http: httpx.Client, body: dict[str, Any], status: int, kind: str) -> None:
    assert post(http, "/embed", status, **body)["error_type"] == kind


def test_truncate_null_is_the_servers_default(http: httpx.Client) -> None:
    answer = http.post("/embed", json={"inputs": ["a " * 50, "a"], "truncate": None})
    assert (answer.status_code, answer.headers["x-truncated"]) == (200, "1")


def test_what_the_model_cannot_do_is_424(models: dict[str, Model], http: httpx.Client) -> None:
    for path, reason in (("/embed_sparse", "SPLADE"), ("/embed_all", "bei-compile --token-embeddings")):
        refused = post(http, path, 424, inputs="a", model="embed")
        assert refused["error_type"] == "Backend"
        assert reason in refused["error"]
    for path, body in (
        ("/embed", {"inputs": "a"}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
    ):
        assert post(http, path, 424, model="rerank", **body)["error_type"] == "Backend"
    assert "made for 'embed'" in post(http, "/predict", 424, model="embed", inputs="a")["error"]


# A vector for each token


def near(found: Any, *wanted: Any) -> None:
    assert len(found) == len(wanted)
    for vectors, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(vectors, want, atol=1e-6)


def token_vectors(text: str) -> Any:
    return expected(ids(text), task="embed-tokens")


def test_embed_all_gives_a_vector_a_token(http: httpx.Client) -> None:
    texts = ["hello world", "a", "a b c"]
    near(post(http, "/embed_all", inputs=texts), *map(token_vectors, texts))
    near(post(http, "/embed_all", inputs="a"), token_vectors("a"))
    near(post(http, "/embed_all", inputs=ids("a b")), token_vectors("a b"))
    near(post(http, "/embed_all", inputs="a", prompt_name="query"), token_vectors("query : a"))
    near(post(http, "/embed", inputs="a"), expected(ids("a")))


def test_embed_all_cuts_as_embed_does(http: httpx.Client) -> None:
    text = "a b c d e f g h i j k l m n"
    answer = http.post("/embed_all", json={"inputs": [f"{text} z z z"]})
    assert answer.headers["x-truncated"] == "1"
    near(answer.json(), token_vectors(text))
    cut = post(http, "/embed_all", inputs=f"z z z {text}", truncation_direction="left")
    near(cut, token_vectors(text))
    assert post(http, "/embed_all", 422, inputs="a " * 50, truncate=False)["error_type"] == "Validation"
    assert post(http, "/embed_all", 400, inputs=[])["error_type"] == "Empty"
    assert post(http, "/embed_all", 422, inputs="a", prompt_name="nope")["error_type"] == "Validation"
    assert "gave NaN" in post(http, "/embed_all", 500, inputs=["a", "poison"])["error"]


def test_embed_all_refuses_what_would_not_fit(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_NUMBERS", 7 * DIM)
    assert len(post(http, "/embed_all", inputs=["a b", "c"])) == 2
    refused = post(http, "/embed_all", 422, inputs=["a b", "c", "d"])
    assert refused["error"].startswith(f"inputs: 10 tokens make {10 * DIM} numbers, at most {7 * DIM} fit")


def test_embed_all_in_messagepack(http: httpx.Client) -> None:
    answer = http.post("/embed_all", json={"inputs": ["a b", "c"]}, headers={"accept": "application/msgpack"})
    near(msgspec.msgpack.decode(answer.content), token_vectors("a b"), token_vectors("c"))


def test_the_repositorys_name_means_the_bundle_that_can(http: httpx.Client) -> None:
    near(post(http, "/embed_all", inputs="a", model="example/tiny"), token_vectors("a"))
    near(post(http, "/embed", inputs="a", model="example/tiny"), expected(ids("a")))
    near(post(http, "/invocations", inputs="a", model="tokens"), token_vectors("a"))
    refused = post(http, "/embed_all", 424, inputs="a", model="embed")
    assert "embed is made for 'embed'" in refused["error"]


def test_similarity_is_the_cosine(http: httpx.Client) -> None:
    got = post(http, "/similarity", inputs={"source_sentence": "a", "sentences": ["a", "b", "hello world"]})
    vectors = np.stack([expected(ids(text)) for text in ("a", "b", "hello world")])
    np.testing.assert_allclose(got, vectors @ vectors[0], atol=1e-6)
    told: dict[str, Any] = {"parameters": {"prompt_name": "query", "truncate": True}}
    assert post(http, "/similarity", inputs={"source_sentence": "a", "sentences": ["a"]}, **told) == [
        pytest.approx(1, abs=1e-6)
    ]
    assert (
        post(http, "/similarity", 400, inputs={"source_sentence": "a", "sentences": []})["error_type"]
        == "Empty"
    )


# Tokens


def test_tokenize_tells_where_tokens_lie(http: httpx.Client) -> None:
    (first, second) = post(http, "/tokenize", inputs=["Hello, ab", "."], model="embed")
    assert first[0] == {"id": CLS, "text": "[CLS]", "special": True, "start": None, "stop": None}
    assert first[1] == {"id": VOCAB["hello"], "text": "Hello", "special": False, "start": 0, "stop": 5}
    assert [token["text"] for token in first[2:]] == [",", "a", "b", "[SEP]"]
    assert [token["id"] for token in second] == ids(".")
    (bare,) = post(http, "/tokenize", inputs="a", add_special_tokens=False, model="embed")
    assert [token["id"] for token in bare] == [VOCAB["a"]]
    (asked,) = post(http, "/tokenize", inputs="a", prompt_name="query", model="embed")
    assert [token["id"] for token in asked] == ids("query : a")


def test_tokenize_cuts_nothing(http: httpx.Client) -> None:
    (tokens,) = post(http, "/tokenize", inputs="a " * 50, model="embed")
    assert len(tokens) == 52


def test_decode(http: httpx.Client) -> None:
    assert post(http, "/decode", ids=ids("hello world"), model="embed") == ["hello world"]
    assert post(http, "/decode", ids=[ids("a"), ids("b")], model="embed") == ["a", "b"]
    (whole,) = post(http, "/decode", ids=ids("a"), skip_special_tokens=False, model="embed")
    assert whole == "[CLS] a [SEP]"
    assert post(http, "/decode", 400, ids=[], model="embed")["error_type"] == "Empty"
    bad: Any
    for bad in ([63], [-1], [[1], 2], [[]], [[10**12]]):
        assert post(http, "/decode", 422, ids=bad, model="embed")["error_type"] == "Validation"


# Scores


def logits(*texts: str) -> np.ndarray[Any, Any]:
    types = [0] * len(ids(texts[0])) + [1] * (len(ids(*texts)) - len(ids(texts[0])))
    return expected(ids(*texts), types, task="classify", classes=len(MOODS))


def softmax(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    exponents = np.exp(x - x.max())
    return np.asarray(exponents / exponents.sum())


def by_label(predictions: list[dict[str, Any]]) -> list[float]:
    scores = [prediction["score"] for prediction in predictions]
    assert scores == sorted(scores, reverse=True)
    found = {prediction["label"]: prediction["score"] for prediction in predictions}
    return [found[mood] for mood in MOODS]


def test_predict_one_text_a_pair_or_a_batch(http: httpx.Client) -> None:
    np.testing.assert_allclose(
        by_label(post(http, "/predict", inputs="a b")), softmax(logits("a b")), atol=1e-6
    )
    np.testing.assert_allclose(
        by_label(post(http, "/predict", inputs=["a", "b"])), softmax(logits("a", "b")), atol=1e-6
    )
    single, pair = post(http, "/predict", inputs=[["a"], ["hello", "world"]], raw_scores=True)
    np.testing.assert_allclose(by_label(single), logits("a"), atol=1e-5)
    np.testing.assert_allclose(by_label(pair), logits("hello", "world"), atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "status"),
    [
        (["a", "b", "c"], 422),
        ([["a", "b", "c"]], 422),
        (["a", ["b"]], 422),
        ([["a", 1]], 422),
        ([[]], 400),
        ([], 400),
        ("", 400),
        ([["a"], [""]], 400),
    ],
)
def test_predict_refuses(http: httpx.Client, inputs: Any, status: int) -> None:
    post(http, "/predict", status, inputs=inputs)


def relevance(query: str, text: str) -> float:
    types = [0] * len(ids(query)) + [1] * (len(ids(query, text)) - len(ids(query)))
    return float(expected(ids(query, text), types, task="rerank", classes=1)[0])


def test_rerank_sorts_by_score(http: httpx.Client) -> None:
    texts = ["a b", "hello world", "z", "query"]
    raw = post(http, "/rerank", query="hello", texts=texts, raw_scores=True, return_text=True)
    assert [rank["score"] for rank in raw] == sorted((rank["score"] for rank in raw), reverse=True)
    for rank in raw:
        assert rank["score"] == pytest.approx(relevance("hello", texts[rank["index"]]), abs=1e-5)
        assert rank["text"] == texts[rank["index"]]
    plain = post(http, "/rerank", query="hello", texts=texts)
    assert [set(rank) for rank in plain] == [{"index", "score"}] * 4
    assert [rank["index"] for rank in plain] == [rank["index"] for rank in raw]
    for rank, logit in zip(plain, raw, strict=True):
        assert rank["score"] == pytest.approx(1 / (1 + np.exp(-logit["score"])), abs=1e-6)


def test_rerank_refuses(http: httpx.Client) -> None:
    assert post(http, "/rerank", 400, query="a", texts=[])["error_type"] == "Empty"
    assert post(http, "/rerank", 400, query="", texts=["a"])["error_type"] == "Empty"
    assert (
        post(http, "/rerank", 422, query="a", texts=["b " * 50], truncate=False)["error_type"] == "Validation"
    )
    post(http, "/rerank", 422, query="a")
    post(http, "/rerank", 422, query="a", texts=["a"], documents=["a"])
    post(http, "/rerank", 422, query="a", texts=["a", 1])


# What is common


def test_headers_tell_the_work(http: httpx.Client) -> None:
    headers = http.post("/embed", json={"inputs": ["hello", "a"]}).headers
    assert (headers["x-compute-type"], headers["x-compute-characters"]) == ("cpu", "6")


@pytest.mark.parametrize("path", ["/embed", "/predict", "/rerank", "/predict_tokens", "/similarity", "/"])
@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b'{"x": ' + b"[" * 50_000, "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"a=b", "application/x-www-form-urlencoded", 415),
        (b"[]", "application/json", 422),
        (b"null", "application/json", 422),
        (b"{}", "application/json", 422),
    ],
)
def test_bodies_that_are_none(
    http: httpx.Client, path: str, content: bytes, content_type: str, status: int
) -> None:
    answer = http.post(path, content=content, headers={"content-type": content_type})
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "error_type"}


def test_a_row_that_is_not_finite_is_an_error_that_clients_try_again(http: httpx.Client) -> None:
    for path, body in (
        ("/embed", {"inputs": ["a", "poison"]}),
        ("/predict", {"inputs": "poison"}),
        ("/rerank", {"query": "a", "texts": ["poison"]}),
        ("/predict_tokens", {"inputs": ["poison"]}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["poison"]}}),
    ):
        refused = post(http, path, 500, **body)
        assert refused["error_type"] == "Backend"
        assert "NaN or infinity" in refused["error"]
