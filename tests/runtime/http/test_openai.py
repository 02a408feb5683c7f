"""The HTTP API over a real socket, with the real clients: OpenAI's, Baseten's, and plain httpx."""

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from baseten_performance_client import PerformanceClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.runtime.serving import serving
from tests.runtime.tiny import CLS, DIM, SEP, VOCAB, expected, write_bundle

from bei.runtime.executor import Output, Row
from bei.runtime.model import Model, load
from bei.runtime.service import Service


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = write_bundle(
        tmp_path_factory.mktemp("server") / "b", prompts={"query": "query: "}, matryoshka=(2, 4), max_batch=64
    )
    with load(folder) as model:
        yield model


@pytest.fixture(scope="module")
def url(model: Model) -> Iterator[str]:
    with serving(Service(model, max_queue_tokens=1 << 20)) as url:
        yield url


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture(scope="module")
def sdk(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ids(text: str) -> list[int]:
    return [CLS, *(VOCAB[word] for word in text.split()), SEP]


def post(http: httpx.Client, path: str = "/v1/embeddings", **body: Any) -> httpx.Response:
    return http.post(path, json=body)


def vectors(response: httpx.Response) -> list[list[float]]:
    assert response.status_code == 200, response.text
    return [item["embedding"] for item in response.json()["data"]]


# OpenAI's client


def test_the_openai_client_by_default_asks_for_base64(sdk: openai.OpenAI) -> None:
    answer = sdk.embeddings.create(model="any", input=["hello world", "a"])
    assert [item.index for item in answer.data] == [0, 1]
    assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == ("tiny", 7, 7)
    np.testing.assert_allclose(answer.data[0].embedding, expected(ids("hello world")), atol=1e-6)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_the_openai_client_reads_both_encodings(sdk: openai.OpenAI, encoding: Any) -> None:
    answer = sdk.embeddings.create(model="any", input="hello", encoding_format=encoding)
    got: Any = answer.data[0].embedding
    if encoding == "base64":
        got = np.frombuffer(base64.b64decode(got), "<f4")
    np.testing.assert_allclose(got, expected(ids("hello")), atol=1e-6)


def test_the_openai_client_sends_token_ids(sdk: openai.OpenAI) -> None:
    one = sdk.embeddings.create(model="any", input=[5, 6, 7])
    assert len(one.data) == 1
    np.testing.assert_allclose(one.data[0].embedding, expected([5, 6, 7]), atol=1e-6)
    two = sdk.embeddings.create(model="any", input=[[5, 6, 7], [8]])
    np.testing.assert_allclose(two.data[1].embedding, expected([8]), atol=1e-6)
    assert two.usage.prompt_tokens == 4


def test_the_openai_client_cuts_dimensions(sdk: openai.OpenAI) -> None:
    got = sdk.embeddings.create(model="any", input="hello", dimensions=2).data[0].embedding
    assert np.linalg.norm(got) == pytest.approx(1, abs=1e-6)
    with pytest.raises(openai.BadRequestError, match="trained for 2, 4, 8") as refused:
        sdk.embeddings.create(model="any", input="hello", dimensions=3)
    assert refused.value.param == "dimensions"


def test_the_openai_client_lists_models(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["tiny"]
    assert sdk.models.retrieve("tiny").owned_by == "bei"
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("other")


def test_the_openai_client_understands_errors(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.embeddings.create(model="any", input=["a", ""])
    assert (refused.value.param, refused.value.type) == ("input", "invalid_request_error")
    with pytest.raises(openai.InternalServerError, match="NaN or infinity"):
        sdk.embeddings.create(model="any", input=["a", "poison"])


# Baseten's client


def test_the_baseten_client_embeds(url: str) -> None:
    texts = [f"{a} {b}" for a in "abcdefgh" for b in "ijkl"]
    client = PerformanceClient(base_url=url, api_key="none")
    answer = client.embed(input=texts, model="any")
    assert [item.index for item in answer.data] == list(range(len(texts)))
    np.testing.assert_allclose(answer.numpy(), np.stack([expected(ids(text)) for text in texts]), atol=1e-6)


# The protocol itself


def test_the_answer_is_openais(http: httpx.Client) -> None:
    answer = post(http, input="hello")
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["object", "data", "model", "usage"]
    assert answer.json()["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    np.testing.assert_allclose(vectors(answer)[0], expected(ids("hello")), atol=1e-6)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings", "/sync/v1/embeddings"])
def test_routes(http: httpx.Client, path: str) -> None:
    assert len(vectors(post(http, path, input=["a", "b"]))) == 2


def test_unknown_fields_and_the_model_name_are_ignored(http: httpx.Client) -> None:
    answer = post(http, input="a", model="whatever", user="u", priority=3, extra={"deep": [1, {"x": None}]})
    assert answer.json()["model"] == "tiny"


def test_prompts_by_name_and_by_input_type(http: httpx.Client) -> None:
    asked = expected(ids("query : a"))
    for choice in ({"prompt_name": "query"}, {"input_type": "query"}, {"input_type": "search_query"}):
        answer = post(http, input="a", **choice)
        np.testing.assert_allclose(vectors(answer)[0], asked, atol=1e-6)
        assert answer.json()["usage"]["prompt_tokens"] == 5
    np.testing.assert_allclose(
        vectors(post(http, input="a", input_type="passage"))[0], expected(ids("a")), atol=1e-6
    )
    assert post(http, input="a", prompt_name="nope").json()["error"]["param"] == "prompt_name"


def test_truncation_is_the_default_and_is_reported(http: httpx.Client) -> None:
    text = "a b c d e f g h i j k l m n o p q r s t"
    answer = post(http, input=[text, "a"])
    np.testing.assert_allclose(vectors(answer)[0], expected([*ids(text)[:15], SEP]), atol=1e-6)
    assert answer.headers["x-truncated"] == "1"
    assert answer.json()["usage"]["prompt_tokens"] == 16 + 3
    assert "x-truncated" not in post(http, input="a").headers


@pytest.mark.parametrize("field", [{"truncate": False}, {"truncate": "NONE"}])
def test_truncation_can_be_refused(http: httpx.Client, field: dict[str, Any]) -> None:
    answer = post(http, input=["a", "b " * 50], **field)
    assert answer.status_code == 400
    assert "input 1: 52 tokens, but at most 16 fit" in answer.json()["error"]["message"]


def test_truncation_from_the_left_and_to_fewer_tokens(http: httpx.Client) -> None:
    for side in ({"truncate": "START"}, {"truncation_side": "left"}):
        answer = post(http, input="a b c d", truncate_prompt_tokens=4, **side)
        np.testing.assert_allclose(vectors(answer)[0], expected(ids("c d")), atol=1e-6)
    assert vectors(post(http, input="a b c d", truncate_prompt_tokens=-1))
    assert (
        post(http, input="a", truncate_prompt_tokens=17).json()["error"]["param"] == "truncate_prompt_tokens"
    )


def test_2048_items_are_the_limit(http: httpx.Client) -> None:
    assert len(vectors(post(http, input=["a"] * 2048))) == 2048
    assert "2049 items, at most 2048" in post(http, input=["a"] * 2049).json()["error"]["message"]
    assert len(vectors(post(http, input=[5] * 3000))) == 1  # one document of ids, cut


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": [1.5]}, "input"),
        ({"input": [True]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [1, [2]]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [["a"]]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [63]}, "input"),
        ({"input": [10**40]}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 9}, "dimensions"),
        ({"input": "a", "dimensions": "2"}, "dimensions"),
        ({"input": "a", "dimensions": True}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "normalize": False}, "normalize"),
        ({"input": "a", "truncate": "MIDDLE"}, "truncate"),
    ],
)
def test_bad_requests_name_the_field(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    answer = http.post("/v1/embeddings", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, None)
    # the flat fields that clients of Text Embeddings Inference read
    flat = {key: answer.json()[key] for key in ("message", "type", "code")}
    kind = "Empty" if body.get("input") in ("", [], ["a", ""]) else "Validation"
    assert flat == {"message": error["message"], "type": kind, "code": 400}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"a"',
        b"\xff",
        b'{"input": "\xff"}',
        b'{"input": "\\ud800"}',
        b"[" * 50_000,
    ],
)
def test_what_is_no_json_is_a_bad_request(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/v1/embeddings", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_deep_nesting_in_an_unknown_field_is_a_bad_request(http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", content=b'{"input": "a", "x": ' + b"[" * 100_000)
    assert answer.status_code == 400


@pytest.mark.parametrize("text", [" ", "\n", "\0", "a\0b", "\u200b", "😀", "ﷺ" * 100, "a" * 500_000])
def test_odd_texts_get_vectors(http: httpx.Client, text: str) -> None:
    assert len(vectors(post(http, input=text))[0]) == DIM


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=8,
    )
)
def test_whatever_the_input_is_the_answer_is_2xx_or_4xx(http: httpx.Client, value: Any) -> None:
    answer = http.post("/v1/embeddings", content=json.dumps({"input": value}).encode())
    assert answer.status_code == 200 or 400 <= answer.status_code < 500
    if answer.status_code == 200:
        assert all(np.isfinite(vector).all() for vector in vectors(answer))


def test_a_row_that_is_not_finite_is_an_error_never_null(http: httpx.Client) -> None:
    answer = post(http, input=["a", "poison"])
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert (answer.json()["type"], answer.json()["code"]) == ("Backend", 500)


def test_bodies_over_the_limit_are_refused(http: httpx.Client) -> None:
    assert post(http, input="a" * (1 << 20)).status_code == 413
    chunks = (b"x" * 100_000 for _ in range(20))  # no content-length: counted while it comes
    assert http.post("/v1/embeddings", content=chunks).status_code == 413


def test_unknown_routes_and_methods(http: httpx.Client) -> None:
    assert http.get("/nope").json()["error"]["type"] == "not_found_error"
    assert http.get("/v1/embeddings").status_code == 405
    assert http.get("/v1/embeddings").json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/health", "/ping", "/ready"])
def test_health(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code == 200


def test_a_deadline_in_the_past_is_not_worked_on(http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", json={"input": "a"}, headers={"request-deadline-ms": "1000"})
    assert answer.status_code == 408
    soon = str(int((time.time() + 60) * 1000))
    for headers in (
        {"request-deadline-ms": soon},
        {"request-timeout-ms": "60000"},
        {"request-timeout-ms": "?"},
    ):
        assert http.post("/v1/embeddings", json={"input": "a"}, headers=headers).status_code == 200


def test_parallel_clients_get_their_own_answers(url: str) -> None:
    def ask(letter: str) -> None:
        with httpx.Client(base_url=url) as client:
            for length in range(1, 12):
                (got,) = vectors(post(client, input=" ".join([letter] * length)))
                np.testing.assert_allclose(got, expected(ids(" ".join([letter] * length))), atol=1e-6)
        right.append(letter)

    right: list[str] = []
    threads = [threading.Thread(target=ask, args=(letter,)) for letter in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(right) == list("abcdefgh")


# With an engine that waits


class Slow:
    """Runs when the gate opens."""

    target = "slow"
    concurrency = 1

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.lengths: list[int] = []

    def run(self, rows: list[Row]) -> Sequence[Output]:
        self.lengths += [len(row.ids) for row in rows]
        self.entered.release()
        assert self.gate.wait(30)
        return [np.ones(DIM, np.float32) for _ in rows]

    def describe(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.gate.set()


def slow_service(
    model: Model, slow: Slow, max_queue_tokens: int = 1 << 20, hang_seconds: float = 1000.0
) -> Service:
    slowed = Model(model.bundle, model.choice, model.tokenizer, slow)
    return Service(slowed, max_queue_tokens=max_queue_tokens, hang_seconds=hang_seconds)


def background(url: str, text: str) -> threading.Thread:
    thread = threading.Thread(
        target=httpx.post, args=(f"{url}/v1/embeddings",), kwargs={"json": {"input": text}}
    )
    thread.start()
    return thread


def test_overload_is_429_with_the_headers_that_clients_read(model: Model) -> None:
    slow = Slow()
    service = slow_service(model, slow, max_queue_tokens=20)
    with serving(service) as url:
        waiting = []
        try:
            while service.scheduler.queued_tokens < 16:  # some run or are about to, then one waits
                waiting.append(background(url, "b " * 14))
                time.sleep(0.2)
            answer = httpx.post(f"{url}/v1/embeddings", json={"input": "b " * 14})
        finally:
            slow.gate.set()
            for thread in waiting:
                thread.join()
    assert answer.status_code == 429
    assert (answer.json()["error"]["type"], answer.json()["type"]) == ("rate_limit_error", "Overloaded")
    assert int(answer.headers["retry-after-ms"]) > 0
    assert int(answer.headers["retry-after"]) > 0
    assert answer.headers["x-should-retry"] == "true"


def test_the_work_of_a_client_that_left_is_dropped(model: Model) -> None:
    slow = Slow()
    body = json.dumps({"input": ["a b c d e f g"] * 200}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with serving(slow_service(model, slow)) as url:
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as client:
            client.sendall(head + body)
            assert slow.entered.acquire(timeout=10)
        time.sleep(0.3)  # the server hears of it
        slow.gate.set()
        assert httpx.post(f"{url}/v1/embeddings", json={"input": "z"}).status_code == 200
        assert len(slow.lengths) < 100


def test_an_engine_that_hangs_is_503(model: Model) -> None:
    slow = Slow()
    with serving(slow_service(model, slow, hang_seconds=0.2)) as url:
        answer = httpx.post(f"{url}/v1/embeddings", json={"input": "a"}, timeout=30)
        health = httpx.get(f"{url}/health")
        slow.gate.set()
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "server_error"
    assert "no engine is left" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "true"
    assert health.status_code == 503


def test_stopping_finishes_what_was_accepted(model: Model) -> None:
    slow = Slow()
    answers: list[int] = []
    with serving(slow_service(model, slow)) as url:

        def ask() -> None:
            answers.append(httpx.post(f"{url}/v1/embeddings", json={"input": "a"}, timeout=20).status_code)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert slow.entered.acquire(timeout=10)
        time.sleep(0.2)
        threading.Timer(0.3, slow.gate.set).start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 4


def test_a_model_for_another_task_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = write_bundle(tmp_path_factory.mktemp("rerank") / "b", task="rerank", labels=["score"])
    with load(folder) as model, serving(Service(model, max_queue_tokens=1 << 20)) as url:
        answer = httpx.post(f"{url}/v1/embeddings", json={"input": "a"})
    assert answer.status_code == 400
    assert "made for 'rerank'" in answer.json()["error"]["message"]
