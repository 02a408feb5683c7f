"""What lies around the routes: keys, request ids, other origins, the access log, metrics, statistics, traces."""

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from tests.runtime.serving import serving
from tests.runtime.tiny import write_bundle

from bei.errors import BeiError
from bei.runtime import serve, stages
from bei.runtime.access_log import AccessLog
from bei.runtime.cold_start import ColdStart
from bei.runtime.http.observe import Exchange
from bei.runtime.http.stats import Recent
from bei.runtime.keys import Keys, find_keys
from bei.runtime.model import Model, load
from bei.runtime.service import Service
from bei.runtime.tracing import Tracer

SECRET = "a text that nobody else may read"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with load(write_bundle(tmp_path_factory.mktemp("layers") / "b", max_batch=64)) as model:
        yield model


@pytest.fixture(scope="module")
def url(model: Model) -> Iterator[str]:
    layers = {"keys": Keys(["first", "sécond"]), "origins": ("https://app.example",)}
    with serving(Service(model, max_queue_tokens=1 << 20), layers=layers) as url:
        yield url


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers={"authorization": "Bearer first"}) as client:
        yield client


def post(http: httpx.Client, text: str = "hello", **options: Any) -> httpx.Response:
    return http.post("/v1/embeddings", json={"input": text}, **options)


# Keys


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer first", 200),
        ("bearer  first", 200),
        ("Api-Key first", 200),
        ("Bearer sécond", 200),
        ("Bearer other", 401),
        ("Bearer firs", 401),
        ("Bearer first first", 401),
        ("Bearer", 401),
        ("first", 401),
        ("Basic first", 401),
        ("", 401),
    ],
)
def test_keys(url: str, header: str, status: int) -> None:
    headers = {"authorization": header.encode()} if header else {}
    answer = httpx.post(f"{url}/v1/embeddings", json={"input": "a"}, headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == status
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("path", ["/embed", "/predict", "/rerank", "/info", "/sync/embed"])
def test_a_missing_key_is_told_in_the_words_of_the_route(url: str, path: str) -> None:
    answer = httpx.request("GET" if path == "/info" else "POST", f"{url}{path}")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    body = answer.json()
    assert body.keys() == {"error", "error_type"}
    assert body["error_type"] == "Unauthorized"
    assert "Authorization: Bearer KEY" in body["error"]


@pytest.mark.parametrize("path", ["/health", "/ping", "/sync/health"])
def test_health_needs_no_key(url: str, path: str) -> None:
    assert httpx.get(f"{url}{path}").status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/stats", "/v1/models", "/nowhere", "/health/", "//health"])
def test_everything_else_does(url: str, path: str) -> None:
    assert httpx.get(f"{url}{path}").status_code == 401


def test_where_keys_come_from(tmp_path: Path) -> None:
    assert find_keys(None, {}) is None
    assert len(find_keys(None, {"BEI_API_KEYS": "a,b c"}) or ()) == 3
    with pytest.raises(BeiError, match="holds no key"):
        find_keys(None, {"BEI_API_KEYS": " , "})
    file = tmp_path / "keys"
    file.write_text("one\n  # comment\n\n two \n")
    keys = find_keys(file, {"BEI_API_KEYS": "three"})
    assert keys is not None
    assert [keys.accept(key) for key in (b"one", b"two", b"three", b"", b"# comment")] == [
        True,
        True,
        False,
        False,
        False,
    ]


# Ids


def test_a_request_gets_an_id_and_keeps_its_own(http: httpx.Client) -> None:
    made = [post(http).headers["x-request-id"] for _ in range(2)]
    assert len(set(made)) == 2
    assert all(len(one) == 32 for one in made)
    baseten = "perfclient-1-2-3"
    answer = post(http, headers={"x-request-id": "mine-1", "x-baseten-customer-request-id": baseten})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-baseten-customer-request-id"] == baseten


@pytest.mark.parametrize("bad", ["", "a b", "x" * 129, "tab\there"])
def test_an_id_that_could_spoil_a_log_is_replaced(http: httpx.Client, bad: str) -> None:
    given = {"x-request-id": bad, "x-baseten-customer-request-id": bad}
    answer = post(http, headers=given)
    assert len(answer.headers["x-request-id"]) == 32
    assert "x-baseten-customer-request-id" not in answer.headers


def test_refusals_have_ids_too(url: str) -> None:
    answer = httpx.get(f"{url}/nowhere", headers={"x-request-id": "mine"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (401, "mine")


def test_times_and_tokens_in_teis_headers(http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", json={"input": ["hello", "a b"]})
    times = {
        name: int(answer.headers[f"x-{name}-time"])
        for name in ("compute", "total", "tokenization", "queue", "inference")
    }
    assert (
        times["compute"] == times["total"] >= times["tokenization"] + times["queue"] + times["inference"] >= 0
    )
    assert answer.headers["x-compute-tokens"] == str(3 + 4)
    assert answer.headers["x-compute-type"] == "cpu"
    assert answer.headers["x-compute-characters"] == str(len("hello") + len("a b"))
    for other in (http.get("/health"), http.post("/v1/embeddings", json={"input": ""})):
        assert not [name for name in other.headers if name.endswith("-time")]


# Browsers of other origins


def test_only_named_origins_may_call(url: str, http: httpx.Client) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    for origin, allowed in (("https://app.example", True), ("https://evil.example", False)):
        preflight = httpx.options(f"{url}/v1/embeddings", headers={"origin": origin, **asked})
        assert (preflight.headers.get("access-control-allow-origin") == origin) is allowed
        answer = post(http, headers={"origin": origin})
        assert ("access-control-allow-origin" in answer.headers) is allowed


def test_by_default_no_origin_may(model: Model) -> None:
    with serving(Service(model, max_queue_tokens=1 << 20)) as url:
        answer = httpx.post(
            f"{url}/v1/embeddings", json={"input": "a"}, headers={"origin": "https://app.example"}
        )
    assert answer.status_code == 200
    assert not any(name.startswith("access-control") for name in answer.headers)


# The log


def test_the_log_holds_sizes_and_times_but_no_text(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    monkeypatch.setattr(serve, "AccessLog", lambda: AccessLog(stream))
    with serving(Service(model, max_queue_tokens=1 << 20), layers={"access_log": True}) as url:
        httpx.post(f"{url}/v1/embeddings?q={SECRET}", json={"input": SECRET}, headers={"x-request-id": "one"})
        httpx.post(f"{url}/v1/embeddings", content=f'{{"input": "{SECRET}"')
        httpx.get(f"{url}/{SECRET}", headers={"authorization": f"Bearer {SECRET}"})
    written = stream.getvalue().decode()
    assert not any(part in written for part in (SECRET, SECRET.replace(" ", "%20"), "nobody"))
    lines = [json.loads(line) for line in written.splitlines()]
    assert [(line["status"], line["route"]) for line in lines] == [
        (200, "/v1/embeddings"),
        (400, "/v1/embeddings"),
        (404, "other"),
    ]
    first = lines[0]
    assert (first["request_id"], first["method"], first["client"], first["rows"]) == (
        "one",
        "POST",
        "127.0.0.1",
        1,
    )
    assert first["tokens"] > 2
    assert first["ms"] >= first["tokenize_ms"] + first["queue_ms"] + first["run_ms"] > 0
    assert first["model"] == "tiny"
    assert "tokens" not in lines[1]
    assert "model" not in lines[1]


# Metrics


def samples(http: httpx.Client) -> dict[str, float]:
    """Values by name and labels, as Prometheus' own parser reads them."""
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_metrics_count_what_happened(http: httpx.Client) -> None:
    before = samples(http)
    assert post(http, "a b").status_code == 200
    assert http.post("/v1/embeddings", json={"input": ["a", "b c d"]}).status_code == 200
    assert http.post("/v1/embeddings", json={"input": ""}).status_code == 400
    after = samples(http)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown("bei_requests_total{route=/v1/embeddings,status=200}") == 2
    assert grown("bei_requests_total{route=/v1/embeddings,status=400}") == 1
    assert grown("bei_request_seconds_count{route=/v1/embeddings}") == 3
    assert grown("bei_rows_total{model=tiny}") == 3
    assert grown("bei_tokens_total{model=tiny}") == 4 + 3 + 5
    assert grown("bei_slots_total{model=tiny}") >= 12
    assert grown("bei_batch_fill_ratio_count{model=tiny}") == grown("bei_batches_total{model=tiny}") > 0
    for stage in ("tokenize", "queue", "run"):
        assert grown(f"bei_stage_seconds_count{{stage={stage}}}") == 2
    assert after["bei_queue_tokens{model=tiny}"] == 0
    assert after["bei_ready{model=tiny}"] == after["bei_replicas_alive{model=tiny}"] == 1
    assert 0 <= after["bei_padding_waste_ratio{model=tiny}"] < 1
    assert after["process_resident_memory_bytes{}"] > 0


def test_the_names_of_text_embeddings_inference(http: httpx.Client) -> None:
    before = samples(http)
    post(http, "a b")
    http.post("/v1/embeddings", json={"input": ["a", "b"]})
    http.post("/v1/embeddings", json={"input": ""})
    after = samples(http)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown("te_request_count{method=batch}") == 1
    assert grown("te_request_success{method=single}") == 1
    assert grown("te_request_failure{err=validation}") == 1
    assert grown("te_request_duration_count{}") == 3
    for name in ("tokenization_duration", "queue_duration", "inference_duration", "input_length"):
        assert grown(f"te_request_{name}_count{{}}") == 2
    assert grown("te_request_input_length_sum{}") == 4 + 6
    assert grown("te_batch_next_tokens_sum{}") == 4 + 6
    assert grown("te_batch_next_size_sum{}") == 3
    assert after["te_queue_size{}"] == 0


def test_rows_that_are_not_finite_are_counted(http: httpx.Client) -> None:
    before = samples(http)
    assert http.post("/v1/embeddings", json={"input": ["poison", "a", "poison a"]}).status_code == 500
    after = samples(http)
    name = "bei_non_finite_rows_total{model=tiny}"
    assert after[name] - before[name] == 2
    assert after["bei_rescued_rows_total{model=tiny}"] == 0  # the bundle has no other engine


def test_names_from_outside_never_become_labels(http: httpx.Client) -> None:
    for number in range(20):
        http.get(f"/invented/{number}")
    routes = {name for name in samples(http) if name.startswith("bei_requests_total")}
    assert not any("invented" in name for name in routes)


def test_two_applications_do_not_share_metrics(model: Model, http: httpx.Client) -> None:
    post(http)
    with serving(Service(model, max_queue_tokens=1 << 20)) as url, httpx.Client(base_url=url) as other:
        assert samples(other)["bei_rows_total{model=tiny}"] == 0


def test_the_ledger_of_the_start(model: Model) -> None:
    start = ColdStart()
    assert start._born > 0
    start.reached("imported")
    start.reached("loaded")
    first = dict(start.seconds)
    start.reached("imported")
    assert start.seconds == first
    assert 0 < first["imported"] <= first["loaded"]


def test_statistics_for_a_page(http: httpx.Client) -> None:
    post(http)
    http.post("/v1/embeddings", json={"input": ""})
    stats = http.get("/stats").json()
    assert stats["cold_start"]["answered"] > 0
    (model,) = stats["models"]
    assert (model["name"], model["task"], model["target"], model["ready"]) == (
        "tiny",
        "embed",
        "onnxruntime-cpu",
        True,
    )
    recent = stats["recent"]
    assert recent["requests"] > recent["failures"] > 0
    assert 0 < recent["p50"] <= recent["p99"]


def test_recent_statistics_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    recent = Recent()

    def ended(at: float, seconds: float, status: int = 200) -> Exchange:
        record = stages.Record(rows=1, tokens=3)
        return Exchange(
            id="",
            method="POST",
            route="/",
            record=record,
            headers={},
            status=status,
            began=at - seconds,
            ended=at,
        )

    now = 1000.0
    for at, seconds in ((now - 100, 9.0), (now - 10, 0.1), (now - 5, 0.2), (now - 1, 0.3)):
        recent(ended(at, seconds))
    recent(ended(now, 5.0, status=500))
    monkeypatch.setattr("bei.runtime.http.stats.time.perf_counter", lambda: now)
    latency = recent.latency()
    assert (latency.requests, latency.failures, latency.tokens) == (4, 1, 12)
    assert [latency.p50, latency.p99] == pytest.approx([200, 300])


# Traces


def test_spans_follow_the_stages_and_continue_the_clients_trace(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr("opentelemetry.sdk.trace.export.BatchSpanProcessor", SimpleSpanProcessor)
    monkeypatch.setattr(serve, "open_tracer", lambda endpoint, name: Tracer(exporter, name))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    layers = {"otlp_endpoint": "http://127.0.0.1:1"}
    with serving(Service(model, max_queue_tokens=1 << 20), layers=layers) as url:
        httpx.post(f"{url}/v1/embeddings", json={"input": SECRET}, headers={"traceparent": parent})
        httpx.post(f"{url}/v1/embeddings", json={"input": "poison"})
    spans = exporter.get_finished_spans()
    root = next(span for span in spans if span.parent is not None and span.parent.is_remote)
    assert root.name == "POST /v1/embeddings"
    assert root.context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    children = [
        span for span in spans if span.parent is not None and span.parent.span_id == root.context.span_id
    ]
    assert [span.name for span in children] == ["tokenize", "queue", "run"]
    for span in children:
        assert span.start_time is not None and span.end_time is not None and root.start_time is not None
        assert root.start_time <= span.start_time <= span.end_time <= (root.end_time or math.inf)
    attributes = dict(root.attributes or {})
    assert (attributes["http.response.status_code"], attributes["bei.rows"]) == (200, 1)
    assert attributes["bei.model"] == "tiny"
    assert not any("nobody" in str(value) for span in spans for value in (span.attributes or {}).values())
    failed = next(span for span in spans if (span.attributes or {}).get("http.response.status_code") == 500)
    assert not failed.status.is_ok
