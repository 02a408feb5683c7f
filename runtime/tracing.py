"""Traces for OpenTelemetry: one span a request, with its stages as children. Nothing is sent unless an endpoint is given."""

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from bei.errors import BeiError
from bei.runtime.http.observe import Exchange

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

SERVER_ERROR = 500


class Tracer:
    """A watcher of exchanges. The client's `traceparent` is continued; spans hold no text."""

    def __init__(self, exporter: "SpanExporter", service: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = TracerProvider(
            resource=Resource.create({"service.name": service}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("bei")
        self._propagator = TraceContextTextMapPropagator()

    def __call__(self, exchange: Exchange) -> None:
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        at = _clock()
        record = exchange.record
        span = self._tracer.start_span(
            f"{exchange.method} {exchange.route}",
            context=self._propagator.extract(exchange.headers),
            kind=SpanKind.SERVER,
            start_time=at(exchange.began),
            attributes={
                "http.request.method": exchange.method,
                "http.route": exchange.route,
                "http.response.status_code": exchange.status,
                "bei.request_id": exchange.id,
                "bei.model": record.model,
                "bei.rows": record.rows,
                "bei.tokens": record.tokens,
            },
        )
        if exchange.status >= SERVER_ERROR:
            span.set_status(StatusCode.ERROR)
        for stage in record.stages:
            child = self._tracer.start_span(
                stage.name, context=set_span_in_context(span), start_time=at(stage.began)
            )
            child.end(at(stage.ended))
        span.end(at(exchange.ended))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def open_tracer(endpoint: str, service: str) -> Tracer:
    """Spans to the OTLP/HTTP collector at ``endpoint`` (http://host:4318). Raises BeiError without OpenTelemetry."""
    if find_spec("opentelemetry.exporter") is None or find_spec("opentelemetry.sdk") is None:
        raise BeiError('--otlp-endpoint: OpenTelemetry is not installed (pip install "bei[otel]").')
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return Tracer(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces"), service)


def _clock() -> Callable[[float], int]:
    """From `time.perf_counter` to nanoseconds of the world's clock."""
    offset = time.time_ns() - time.perf_counter_ns()
    return lambda seconds: offset + int(seconds * 1e9)
