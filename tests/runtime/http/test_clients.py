"""Vendors' own clients, each against a live server."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import cohere
import httpx
import huggingface_hub
import numpy as np
import openai
import pytest
from baseten_performance_client import PerformanceClient
from huggingface_hub import InferenceClient
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from pydantic import SecretStr
from tests.runtime.http.conftest import MOODS
from tests.runtime.http.test_tei import ids, logits, relevance, softmax
from tests.runtime.tiny import expected

TEXTS = [f"{a} {b}" for a in "abcdefgh" for b in "ijkl"]
VECTORS = np.stack([expected(ids(text)) for text in TEXTS])


@pytest.fixture
def transport() -> Iterator[httpx.Client]:
    """For clients that do not close what they open."""
    with httpx.Client() as client:
        yield client


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


# OpenAI's (more of it in test_openai.py)


def test_openai_reads_every_dtype_of_base64(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model="embed", input=TEXTS)
        np.testing.assert_allclose([item.embedding for item in answer.data], VECTORS, atol=1e-6)
        with pytest.raises(openai.BadRequestError, match="made for 'rerank'"):
            client.embeddings.create(model="rerank", input="a")


# Baseten's


@pytest.fixture(scope="module")
def baseten(url: str) -> PerformanceClient:
    return PerformanceClient(base_url=url, api_key="none")


def test_baseten_embeds(baseten: Any) -> None:
    answer = baseten.embed(input=TEXTS, model="embed")
    assert [item.index for item in answer.data] == list(range(len(TEXTS)))
    np.testing.assert_allclose(answer.numpy(), VECTORS, atol=1e-6)
    assert answer.usage.prompt_tokens == 4 * len(TEXTS)


def test_baseten_reranks(baseten: Any) -> None:
    answer = baseten.rerank(query="hello", texts=TEXTS, return_text=True)
    assert len(answer.data) == len(TEXTS)
    for item in answer.data:
        assert item.text == TEXTS[item.index]
        assert item.score == pytest.approx(sigmoid(relevance("hello", item.text)), abs=1e-6)
    raw = baseten.rerank(query="hello", texts=["a"], raw_scores=True)
    assert raw.data[0].score == pytest.approx(relevance("hello", "a"), abs=1e-5)


def test_baseten_classifies(baseten: Any) -> None:
    answer = baseten.classify(inputs=TEXTS)
    for text, results in zip(TEXTS, answer.data, strict=True):
        found = {result.label: result.score for result in results}
        np.testing.assert_allclose([found[mood] for mood in MOODS], softmax(logits(text)), atol=1e-6)


def test_baseten_posts_batches(baseten: Any) -> None:
    payloads = [{"inputs": [text], "raw_scores": False, "truncate": True} for text in TEXTS[:5]]
    answer = baseten.batch_post(url_path="/predict_tokens", payloads=payloads)
    assert len(answer.data) == 5
    for (found,), text in zip(answer.data, TEXTS, strict=False):
        assert [entry["token_id"] for entry in found] == ids(text)


def test_baseten_shows_errors_and_does_not_try_again(baseten: Any) -> None:
    with pytest.raises(Exception, match="at most 16 fit"):
        baseten.rerank(query="hello", texts=["a " * 50])


# Cohere's


def test_cohere_reranks(url: str, transport: httpx.Client) -> None:
    second = cohere.ClientV2(api_key="none", base_url=url, httpx_client=transport)
    answer = second.rerank(model="rerank", query="hello", documents=TEXTS, top_n=5, max_tokens_per_doc=100)
    scores = [sigmoid(relevance("hello", text)) for text in TEXTS]
    best = sorted(range(len(TEXTS)), key=lambda index: -scores[index])[:5]
    assert [result.index for result in answer.results] == best
    assert [result.relevance_score for result in answer.results] == [
        pytest.approx(scores[index], abs=1e-6) for index in best
    ]
    first = cohere.Client(api_key="none", base_url=url, httpx_client=transport)
    with_text = first.rerank(model="rerank", query="hello", documents=TEXTS, top_n=1, return_documents=True)
    assert with_text.results[0].document is not None
    assert with_text.results[0].document.text == TEXTS[best[0]]
    with pytest.raises(cohere.BadRequestError):
        second.rerank(model="rerank", query="", documents=["a"])


# Hugging Face's

Hub = Callable[[str], InferenceClient]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Clients of a URL. Hugging Face's offline mode, which the suite may run in, forbids loopback too."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(
            InferenceClient(model=url, token="none", provider="hf-inference")
        )
    huggingface_hub.close_session()


def test_hugging_face_embeds(url: str, hub: Hub) -> None:
    client = hub(f"{url}/embed")
    got = client.feature_extraction("a i", normalize=True, truncate=True, truncation_direction="right")
    np.testing.assert_allclose(got, VECTORS[:1], atol=1e-6)
    asked = client.feature_extraction("a", prompt_name="query")
    np.testing.assert_allclose(asked, [expected(ids("query : a"))], atol=1e-6)


def test_hugging_face_compares(url: str, hub: Hub) -> None:
    got = hub(f"{url}/similarity").sentence_similarity("a i", other_sentences=TEXTS)
    np.testing.assert_allclose(got, VECTORS @ VECTORS[0], atol=1e-6)


def test_hugging_face_reads_info(url: str, hub: Hub) -> None:
    assert hub(url).get_endpoint_info()["model_id"] == "example/tiny"
    assert hub(url).health_check()


# Frameworks


def test_langchain_embeds(url: str, transport: httpx.Client) -> None:
    model = OpenAIEmbeddings(
        model="embed",
        base_url=f"{url}/v1",
        api_key=SecretStr("none"),
        check_embedding_ctx_length=False,
        http_client=transport,
    )
    np.testing.assert_allclose(model.embed_documents(TEXTS), VECTORS, atol=1e-6)
    np.testing.assert_allclose(model.embed_query("a i"), VECTORS[0], atol=1e-6)


def test_llama_index_embeds(url: str, transport: httpx.Client) -> None:
    model = OpenAILikeEmbedding(
        model_name="embed", api_base=f"{url}/v1", api_key="none", embed_batch_size=10, http_client=transport
    )
    np.testing.assert_allclose(model.get_text_embedding_batch(TEXTS), VECTORS, atol=1e-6)
    np.testing.assert_allclose(model.get_query_embedding("a i"), VECTORS[0], atol=1e-6)
