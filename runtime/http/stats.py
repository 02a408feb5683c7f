"""Operations for people and their tools: Prometheus' metrics, and the same in short as JSON for a page."""

import time
from collections import deque
from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bei.runtime.cold_start import ColdStart, Step
from bei.runtime.http.observe import Exchange
from bei.runtime.metrics import CONTENT_TYPE, Metrics
from bei.runtime.service import Service

WINDOW_SECONDS = 60.0
MAX_SEEN = 10_000


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """POST requests that ended in the last ``seconds``, at most MAX_SEEN of them; quantiles in milliseconds."""

    seconds: float
    requests: int
    failures: int
    tokens: int
    p50: float | None
    p99: float | None


class ModelStats(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle's engines, queue and counts since the start."""

    name: str
    task: str
    target: str
    ready: bool
    replicas: int
    replicas_alive: int
    queue_tokens: int
    queue_limit_tokens: int
    open_requests: int
    tokens_per_second: float
    batches: int
    rows: int
    tokens: int
    padding_waste: float
    refused_requests: int
    failed_batches: int
    non_finite_rows: int
    rescued_rows: int


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """GET /stats. ``cold_start``: seconds from the birth of the process to each step."""

    uptime: float
    cold_start: dict[Step, float]
    recent: Latency
    models: list[ModelStats]


class Recent:
    """A watcher of exchanges that remembers the last minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float, bool, int]] = deque(maxlen=MAX_SEEN)
        self._began = time.perf_counter()

    def __call__(self, exchange: Exchange) -> None:
        if exchange.method == "POST":
            failed = exchange.status >= 400
            self._seen.append((exchange.ended, exchange.seconds, failed, exchange.record.tokens))

    def latency(self) -> Latency:
        now = time.perf_counter()
        kept = [entry for entry in self._seen if entry[0] > now - WINDOW_SECONDS]
        times = sorted(1000 * seconds for _, seconds, failed, _ in kept if not failed)
        full = len(self._seen) == MAX_SEEN and len(kept) == MAX_SEEN
        return Latency(
            seconds=now - kept[0][0] if full else min(WINDOW_SECONDS, now - self._began),
            requests=len(kept),
            failures=sum(failed for _, _, failed, _ in kept),
            tokens=sum(tokens for *_, tokens in kept),
            p50=_quantile(times, 0.5),
            p99=_quantile(times, 0.99),
        )


def stats_routes(
    services: Sequence[Service], metrics: Metrics, recent: Recent, cold_start: ColdStart
) -> list[Route]:
    """GET /metrics (and /v1/metrics, as NVIDIA NIM names it) and GET /stats."""
    began = time.perf_counter()

    async def scraped(request: Request) -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def stats(request: Request) -> Response:
        made = Stats(
            uptime=time.perf_counter() - began,
            cold_start=dict(cold_start.seconds),
            recent=recent.latency(),
            models=[_model(service) for service in services],
        )
        return Response(msgspec.json.encode(made), media_type="application/json")

    return [Route("/metrics", scraped), Route("/v1/metrics", scraped), Route("/stats", stats)]


def _model(service: Service) -> ModelStats:
    scheduler, counts = service.scheduler, service.scheduler.counts
    return ModelStats(
        name=service.name,
        task=service.manifest.head.task,
        target=service.model.target,
        ready=service.ready,
        replicas=scheduler.replicas,
        replicas_alive=scheduler.replicas_alive,
        queue_tokens=scheduler.queued_tokens,
        queue_limit_tokens=scheduler.max_queue_tokens,
        open_requests=scheduler.queued_requests,
        tokens_per_second=scheduler.tokens_per_second,
        batches=counts.batches,
        rows=counts.rows,
        tokens=counts.tokens,
        padding_waste=counts.waste,
        refused_requests=counts.refused_requests,
        failed_batches=counts.failed_batches,
        non_finite_rows=service.model.rescue.counts.non_finite,
        rescued_rows=service.model.rescue.counts.rescued,
    )


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else None
