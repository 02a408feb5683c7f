"""Several bundles in one process, and what is told about them."""

from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from tests.runtime.http.conftest import LABELS, MOODS, services
from tests.runtime.http.test_tei import ids
from tests.runtime.serving import serving
from tests.runtime.tiny import DIM, expected, write_bundle

from bei.errors import EngineLost, InputError
from bei.runtime.http.operations import OPERATIONS
from bei.runtime.model import Model, load
from bei.runtime.service import Service


def embed(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post("/v1/embeddings", json={"input": "a", **body})


def test_the_task_or_the_name_decides(http: httpx.Client) -> None:
    assert embed(http).json()["model"] == "embed"
    assert embed(http, model="any name").json()["model"] == "embed"
    refused = embed(http, model="rerank")
    assert refused.status_code == 400
    assert "made for 'rerank', this route needs a model for embed" in refused.json()["error"]["message"]
    refused = http.post("/tokenize", json={"inputs": "a"})
    assert refused.status_code == 422
    assert "name one of embed, rerank, classify, tags" in refused.json()["error"]
    assert http.post("/tokenize", json={"inputs": "a", "model": "nope"}).status_code == 404


def test_of_two_that_fit_one_must_be_named(models: dict[str, Model]) -> None:
    with serving(*services(models, "classify", "moods")) as url, httpx.Client(base_url=url) as http:
        assert http.post("/classify", json={"input": "a"}).status_code == 400
        for name in ("classify", "moods"):
            assert http.post("/classify", json={"input": "a", "model": name}).json()["model"] == name
        unknown = http.post("/classify", json={"input": "a", "model": "x"})
        assert unknown.status_code == 404
        assert unknown.json()["error"]["param"] == "model"
        assert unknown.json()["error"]["type"] == "not_found_error"
        assert embed(http).status_code == 400


def test_strict_names(models: dict[str, Model]) -> None:
    with (
        serving(*services(models, "embed"), strict_model_name=True) as url,
        httpx.Client(base_url=url) as http,
    ):
        assert embed(http).status_code == 200
        assert embed(http, model="embed").status_code == 200
        assert embed(http, model="example/tiny").status_code == 200
        assert embed(http, model="embed-query").status_code == 200
        assert embed(http, model="other").status_code == 404


def test_nims_suffix_is_an_input_type(http: httpx.Client) -> None:
    for model, text in (
        ("embed-query", "query : a"),
        ("embed-passage", "a"),
        ("example/tiny-query", "query : a"),
        ("other-query", "a"),
    ):
        (item,) = embed(http, model=model).json()["data"]
        np.testing.assert_allclose(item["embedding"], expected(ids(text)), atol=1e-6)


def test_prompts_that_the_operator_adds(models: dict[str, Model]) -> None:
    told = {"query": "b ", "passage": "c "}
    service = Service(models["embed"], prompts=told, default_prompt="passage", max_queue_tokens=1 << 20)
    with serving(service) as url, httpx.Client(base_url=url) as http:
        for options, text in (
            ({"prompt_name": "query"}, "b a"),
            ({"input_type": "passage"}, "c a"),
            ({}, "c a"),
        ):
            (item,) = embed(http, **options).json()["data"]
            np.testing.assert_allclose(item["embedding"], expected(ids(text)), atol=1e-6)
        assert http.get("/info").json()["prompts"] == told
        (tokens,) = http.post(
            "/tokenize", json={"inputs": "a"}
        ).json()  # the default prompt's too, as TEI does
        assert [token["id"] for token in tokens] == ids("c a")
        (tokens,) = http.post("/tokenize", json={"inputs": "a", "prompt_name": "query"}).json()
        assert [token["id"] for token in tokens] == ids("b a")
    with pytest.raises(InputError, match="default_prompt: 'other' is unknown; tiny has query"):
        Service(models["embed"], default_prompt="other", max_queue_tokens=1 << 20)


@pytest.mark.parametrize(
    "option", [{"prompt_name": "query"}, {"input_type": "query"}, {"model": "embed-query"}]
)
def test_a_prompt_and_token_ids_exclude_each_other(http: httpx.Client, option: dict[str, str]) -> None:
    refused = embed(http, input=[["a"], 5][1:], **option)
    assert refused.status_code == 400
    assert "a prompt cannot go before them" in refused.json()["error"]["message"]


def test_unit_length_on_demand_and_always(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = write_bundle(tmp_path_factory.mktemp("dot") / "b", normalized=False, dimensions=DIM)
    with load(folder, threads=1) as model:
        with serving(Service(model, max_queue_tokens=1 << 20)) as url:
            info = httpx.get(f"{url}/info").json()
            assert (info["normalized"], info["always_normalize"]) == (False, False)
        with serving(Service(model, max_queue_tokens=1 << 20), always_normalize=True) as url:
            assert httpx.get(f"{url}/info").json()["always_normalize"] is True
            answer = httpx.post(f"{url}/v1/embeddings", json={"input": "a", "dimensions": 4})
            assert np.linalg.norm(answer.json()["data"][0]["embedding"]) == pytest.approx(1, abs=1e-6)


def test_labels_that_lack_one_are_named(
    tmp_path_factory: pytest.TempPathFactory, models: dict[str, Model]
) -> None:
    """A classifier with three scores and two names answers 500, and says which name is missing."""
    model = models["classify"]
    head = msgspec.structs.replace(model.manifest.head, labels=MOODS[:2])
    manifest = msgspec.structs.replace(model.manifest, head=head)
    service = Service(model, name="classify", max_queue_tokens=1 << 20)
    service.manifest = manifest
    with serving(service) as url:
        for path, body in (("/predict", {"inputs": "a"}), ("/classify", {"input": "a"})):
            answer = httpx.post(f"{url}{path}", json=body)
            assert answer.status_code == 500
            assert "gives 3 scores for 2 labels: label 2 has no name" in answer.text


# What is told


def test_info_is_teis(http: httpx.Client) -> None:
    info = http.get("/info").json()
    assert (info["model_id"], info["served_model_name"]) == ("example/tiny", "embed")
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (info["max_input_length"], info["max_client_batch_size"]) == (16, 2048)
    assert (info["target"], info["status"], info["parity"]) == ("onnxruntime-cpu", "executed", "passed")
    assert (info["task"], info["device"], info["precision"], info["layout"]) == (
        "embed",
        "cpu",
        "fp32",
        "padded",
    )
    assert (info["license"], info["cosine_min"]) == ("apache-2.0", None)
    assert info["prompts"] == {"query": "query: "}
    assert info["engine"]["device"] == "cpu"
    kinds = [model["model_type"] for model in info["models"]]
    assert [list(kind) for kind in kinds] == [
        ["embedding"],
        ["reranker"],
        ["classifier"],
        ["token_classifier"],
        ["embedding"],
    ]
    assert kinds[4] == {"embedding": {"pooling": "none"}}
    assert info["models"][4]["dimensions"] == DIM
    assert kinds[3]["token_classifier"]["id2label"] == {str(i): label for i, label in enumerate(LABELS)}
    assert kinds[2]["classifier"]["label2id"] == {mood: index for index, mood in enumerate(MOODS)}


def test_info_tells_of_an_engine_that_is_lost(
    models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe() -> dict[str, Any]:
        raise EngineLost("cuda-sm90: cuMemGetInfo_v2 failed: CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr(models["embed"].executor, "describe", describe)
    with serving(*services(models, "embed")) as url:
        info = httpx.get(f"{url}/info")
        assert info.status_code == 200
        assert "ILLEGAL_ADDRESS" in info.json()["engine"]["error"]


def test_models_are_listed(http: httpx.Client) -> None:
    assert [card["id"] for card in http.get("/v1/models").json()["data"]] == [
        "embed",
        "rerank",
        "classify",
        "tags",
        "tokens",
    ]
    assert http.get("/v1/models/rerank").json()["id"] == "rerank"
    assert http.get("/v1/models/nope").status_code == 404


def test_nims_metadata(http: httpx.Client) -> None:
    metadata = http.get("/v1/metadata").json()
    assert metadata["modelInfo"][0] == {"shortName": "embed", "modelUrl": "example/tiny"}
    assert {licence["name"] for licence in metadata["licenseInfo"]} == {"apache-2.0"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/health", None),
        ("/ping", None),
        ("/ready", None),
        ("/", None),
        ("/v1/health/live", {"object": "health.response", "message": "live", "ready": True}),
        ("/v1/health/ready", {"object": "health.response", "message": "ready", "ready": True}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/tags/ready", {"ready": True}),
    ],
)
@pytest.mark.parametrize("prefix", ["", "/sync"])
def test_health_has_many_names(http: httpx.Client, prefix: str, path: str, body: Any) -> None:
    answer = http.get(prefix + path)
    assert answer.status_code == 200
    assert (answer.json() if answer.content else None) == body


def test_a_model_that_is_not_there_is_not_ready(http: httpx.Client) -> None:
    assert http.get("/v2/models/nope/ready").status_code == 404


# One route for all


@pytest.mark.parametrize("path", ["/invocations", "/", "/sync/invocations"])
def test_the_model_decides_what_a_body_is(http: httpx.Client, path: str) -> None:
    bodies: list[tuple[str, str, dict[str, Any]]] = [
        ("embed", "/embed", {"inputs": "a"}),
        ("embed", "/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
        ("rerank", "/rerank", {"query": "a", "texts": ["b", "c"]}),
        ("classify", "/predict", {"inputs": ["a"]}),
        ("tags", "/predict_tokens", {"inputs": ["a"]}),
    ]
    for model, same, body in bodies:
        answer = http.post(path, json={**body, "model": model})
        assert answer.status_code == 200, answer.text
        assert answer.json() == http.post(same, json=body).json()
    assert http.post(path, json={"inputs": 5, "model": "embed"}).status_code == 422


def test_vertex_answers_each_instance(http: httpx.Client) -> None:
    instances = [
        {"inputs": "a", "model": "embed"},
        {"inputs": "a", "type": "predict"},
        {"inputs": "a b", "type": "tokenize", "model": "embed"},
    ]
    predictions = http.post("/vertex", json={"instances": instances}).json()["predictions"]
    assert predictions[0] == http.post("/embed", json={"inputs": "a"}).json()
    assert predictions[1] == http.post("/predict", json={"inputs": "a"}).json()
    assert len(predictions[2][0]) == 4
    bad: Any
    for bad in (
        [],
        [{"inputs": 5, "type": "embed"}],
        [{"inputs": "a", "type": "nope"}],
        [{"type": ["x"]}],
        [{}],
    ):
        assert http.post("/vertex", json={"instances": bad}).status_code in (400, 422)


def test_every_route_is_under_sync_too(http: httpx.Client) -> None:
    for operation in OPERATIONS:
        for path in operation.paths:
            got = http.request(operation.method, f"/sync{path}", content=b"{" if operation.body else None)
            assert got.status_code == (400 if operation.body else got.status_code)
            assert "Not Found" not in got.text
