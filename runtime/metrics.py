"""What Prometheus scrapes: our own names, and beside them those of Text Embeddings Inference (TEI), which many scrape already.

Counts are read from the schedulers when somebody asks; only distributions are kept here.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bei.runtime.cold_start import ColdStart
from bei.runtime.http.observe import Exchange
from bei.runtime.scheduler import BatchFacts
from bei.runtime.service import Service
from bei.runtime.stages import Name

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
SIZES = tuple(float(1 << power) for power in range(15))
TOKENS = tuple(float(1 << power) for power in range(20))
FILL = tuple(tenth / 10 for tenth in range(1, 11))

FAILURES = {
    400: "validation", 401: "unauthorized", 404: "not_found", 408: "timeout", 413: "validation", 415: "validation",
    422: "validation", 424: "backend", 429: "overloaded", 499: "client_gone", 500: "backend", 503: "unhealthy",
}  # fmt: skip

Read = Callable[[Service], float]

COUNTS: dict[str, tuple[str, Read]] = {
    "bei_batches": ("Batches run", lambda s: s.scheduler.counts.batches),
    "bei_rows": ("Rows run", lambda s: s.scheduler.counts.rows),
    "bei_tokens": ("Tokens run, without padding", lambda s: s.scheduler.counts.tokens),
    "bei_slots": ("Tokens computed, padding included", lambda s: s.scheduler.counts.slots),
    "bei_engine_seconds": ("Time engines spent on batches", lambda s: s.scheduler.counts.seconds),
    "bei_failed_batches": ("Batches that failed", lambda s: s.scheduler.counts.failed_batches),
    "bei_retried_batches": (
        "Batches that failed on one engine and ran on another",
        lambda s: s.scheduler.counts.retried_batches,
    ),
    "bei_dropped_requests": (
        "Requests given up while rows of them waited",
        lambda s: s.scheduler.counts.dropped_requests,
    ),
    "bei_non_finite_rows": (
        "Rows that an engine gave as NaN or infinity",
        lambda s: s.model.rescue.counts.non_finite,
    ),
    "bei_rescued_rows": (
        "Those of them that the fp32 engine answered",
        lambda s: s.model.rescue.counts.rescued,
    ),
    "bei_refused_requests": (
        "Requests refused because too much waited",
        lambda s: s.scheduler.counts.refused_requests,
    ),
}

GAUGES: dict[str, tuple[str, Read]] = {
    "bei_padding_waste_ratio": (
        "Share of the computed tokens that was padding, since the start",
        lambda s: s.scheduler.counts.waste,
    ),
    "bei_queue_tokens": ("Tokens waiting for an engine", lambda s: s.scheduler.queued_tokens),
    "bei_queue_limit_tokens": (
        "Tokens that may wait before requests are refused",
        lambda s: s.scheduler.max_queue_tokens,
    ),
    "bei_open_requests": ("Requests accepted and not yet answered", lambda s: s.scheduler.queued_requests),
    "bei_tokens_per_second": (
        "Measured over recent batches, all engines together",
        lambda s: s.scheduler.tokens_per_second,
    ),
    "bei_replicas": ("Engines started", lambda s: s.scheduler.replicas),
    "bei_replicas_alive": ("Engines that get work", lambda s: s.scheduler.replicas_alive),
    "bei_ready": ("1 when the model takes requests", lambda s: s.scheduler.open),
}


class Metrics:
    """Of one application, in a registry of its own. A watcher of exchanges."""

    def __init__(self, services: Sequence[Service], cold_start: ColdStart) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # samples that no dashboard reads
        self.registry = CollectorRegistry()
        histogram = partial(Histogram, registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        self._requests = counter("bei_requests", "Answered requests", ("route", "status"))
        self._seconds = histogram(
            "bei_request_seconds", "From the headers to the last byte", ("route",), buckets=SECONDS
        )
        self._stages = histogram(
            "bei_stage_seconds", "Time of a request's stages", ("stage",), buckets=SECONDS
        )
        self._fill = histogram(
            "bei_batch_fill_ratio", "Computed tokens over the budget", ("model",), buckets=FILL
        )
        self._tei = TeiMetrics(self.registry)
        self.registry.register(_Collected(services, cold_start))
        ProcessCollector(registry=self.registry)
        for service in services:
            service.scheduler.on_batch = partial(self._batch, service)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)

    def __call__(self, exchange: Exchange) -> None:
        self._requests.labels(exchange.route, str(exchange.status)).inc()
        self._seconds.labels(exchange.route).observe(exchange.seconds)
        for stage in exchange.record.stages:
            self._stages.labels(stage.name).observe(stage.ended - stage.began)
        if exchange.method == "POST":
            self._tei.request(exchange)

    def _batch(self, service: Service, facts: BatchFacts) -> None:
        self._fill.labels(service.name).observe(facts.slots / service.scheduler.budget.max_tokens)
        self._tei.batch(facts)


class TeiMetrics(Collector):
    """TEI's names and labels. Its counters lack the suffix that Prometheus' own client insists on."""

    def __init__(self, registry: CollectorRegistry) -> None:
        histogram = partial(Histogram, registry=registry)
        self._counts: dict[tuple[str, str, str], float] = {}
        self._duration = histogram("te_request_duration", "Seconds of a request", buckets=SECONDS)
        self._stages: dict[Name, Histogram] = {
            "tokenize": histogram(
                "te_request_tokenization_duration", "Seconds of tokenisation", buckets=SECONDS
            ),
            "queue": histogram("te_request_queue_duration", "Seconds in the queue", buckets=SECONDS),
            "run": histogram("te_request_inference_duration", "Seconds in the engine", buckets=SECONDS),
        }
        self._length = histogram("te_request_input_length", "Tokens of a request", buckets=TOKENS)
        self._size = histogram("te_batch_next_size", "Rows of a batch", buckets=SIZES)
        self._tokens = histogram("te_batch_next_tokens", "Tokens of a batch", buckets=TOKENS)
        registry.register(self)

    def request(self, exchange: Exchange) -> None:
        record = exchange.record
        method = "batch" if record.rows > 1 else "single"
        self._add("te_request_count", "method", method)
        self._duration.observe(exchange.seconds)
        if exchange.status >= 400:
            self._add("te_request_failure", "err", FAILURES.get(exchange.status, "other"))
            return
        self._add("te_request_success", "method", method)
        self._length.observe(record.tokens)
        for name, histogram in self._stages.items():
            histogram.observe(record.seconds(name))

    def batch(self, facts: BatchFacts) -> None:
        self._size.observe(facts.rows)
        self._tokens.observe(facts.tokens)

    def collect(self) -> Iterator[Metric]:
        for name in ("te_request_count", "te_request_success", "te_request_failure"):
            metric = Metric(name, "As Text Embeddings Inference counts", "unknown")
            for (of, label, value), count in self._counts.items():
                if of == name:
                    metric.add_sample(name, {label: value}, count)
            yield metric

    def _add(self, name: str, label: str, value: str) -> None:
        key = (name, label, value)
        self._counts[key] = self._counts.get(key, 0) + 1


class _Collected(Collector):
    """What the schedulers and the ledger know, read when asked."""

    def __init__(self, services: Iterable[Service], cold_start: ColdStart) -> None:
        self._services, self._cold_start = tuple(services), cold_start

    def collect(self) -> Iterator[Metric]:
        for name, (text, read) in COUNTS.items():
            counter = CounterMetricFamily(name, text, labels=("model",))
            yield self._filled(counter, read)
        for name, (text, read) in GAUGES.items():
            yield self._filled(GaugeMetricFamily(name, text, labels=("model",)), read)
        waiting = sum(service.scheduler.queued_requests for service in self._services)
        yield GaugeMetricFamily("te_queue_size", "Requests accepted and not yet answered", value=waiting)
        start = GaugeMetricFamily(
            "bei_cold_start_seconds", "From the birth of the process to a step", labels=("step",)
        )
        for step, seconds in self._cold_start.seconds.items():
            start.add_metric((step,), seconds)
        yield start

    def _filled(self, metric: CounterMetricFamily | GaugeMetricFamily, read: Read) -> Metric:
        for service in self._services:
            metric.add_metric((service.name,), read(service))
        return metric
