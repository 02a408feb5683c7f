"""Measure a bundle on this machine: its engine's calls by size, the tokenizer, and what the server adds to a request."""

import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import NamedTuple

import numpy as np

import bei
from bei.cards import CPU, card_of
from bei.gpu import gpus
from bei.runtime.batching import budget_for
from bei.runtime.capacity.curve import EngineCurve, HostCosts, Point, grid, shape_of
from bei.runtime.capacity.probe import TEXT, Probe, probing
from bei.runtime.cpu import processor, usable_cpus
from bei.runtime.executor import Executor, Row
from bei.runtime.model import Model

CPU_MAX_TOKENS = 1024
"""Where a CPU engine's calls are long since slower a token, and only add to the latency."""

SECONDS, CALLS = 0.15, 5
"""Each size runs for so long, and so many times at least."""

ONE, MANY = 1, 32
"""Texts of the requests that tell what a request costs, and what a text."""

REQUESTS = 200

Advance = Callable[[str], None]


def measure_engine(model: Model, advance: Advance = lambda what: None) -> EngineCurve:
    """Every size of the grid, with one call in flight and with as many as the engine takes."""
    record, limits = model.choice.record, model.manifest.limits
    on_cpu = record.device == "cpu"
    most = min(CPU_MAX_TOKENS, limits.max_batch_tokens) if on_cpu else limits.max_batch_tokens
    concurrency = model.executor.concurrency
    (row,) = model.tokenizer.encode(["a text of no meaning"], max_length=limits.max_length)
    points = []
    for rows, length in grid(limits.max_length, most, limits.max_batch):
        if not budget_for(record, limits, most).fits(rows, length, rows * length):
            continue
        batch = [Row(ids=np.resize(row.ids, length), types=np.resize(row.types, length))] * rows
        for calls in sorted({1, concurrency}):
            advance(f"{record.target}: {rows} × {length} tokens, {calls} in flight")
            seconds = _seconds(model.executor, batch, calls)
            points.append(Point(calls, length, rows * length, seconds))
    device = processor() if on_cpu else _gpu_name()
    return EngineCurve(
        device=device,
        card=CPU if on_cpu else card_of(device),
        host=processor(),
        model=model.manifest.name,
        shape=shape_of(model.manifest.encoder),
        target=record.target,
        kind=record.device,
        layout=record.layout,
        threads=concurrency if on_cpu else 0,
        concurrency=concurrency,
        source=_source(),
        points=tuple(points),
    )


def measure_host(model: Model, advance: Advance = lambda what: None) -> HostCosts:
    """Tokenizer and server. The server is the real one, over an engine that answers at once."""
    advance("tokenizer")
    per_text, per_token = _tokenizer(model)
    advance("server")
    with probing(model) as probe:
        one, many = _asked(probe, ONE), _asked(probe, MANY)
    text = max(0.0, (many.loop - one.loop) / (MANY - ONE))
    request = max(0.0, one.loop - text)
    tokenize = per_text + len(model.tokenizer.encode([TEXT], max_length=model.max_length)[0].ids) * per_token
    return HostCosts(
        device=processor(),
        cores=usable_cpus(),
        source=_source(),
        request=request,
        text=text,
        tokenize_text=per_text,
        tokenize_token=per_token,
        idle=max(0.0, one.latency - request - text - tokenize),
    )


class Asked(NamedTuple):
    """Seconds a request: of the event loop's CPU, and until the answer was there (median)."""

    loop: float
    latency: float


def _asked(probe: Probe, texts: int) -> Asked:
    for _ in range(REQUESTS // 10):
        probe.ask(texts)
    before = probe.loop_seconds()
    latencies = [probe.ask(texts) for _ in range(REQUESTS)]
    return Asked((probe.loop_seconds() - before) / REQUESTS, statistics.median(latencies))


def _seconds(executor: Executor, batch: list[Row], calls: int) -> float:
    """Of one call, with ``calls`` of them in flight all the time."""
    executor.run(batch)

    def repeat(until: float) -> list[float]:
        times: list[float] = []
        while len(times) < CALLS or time.perf_counter() < until:
            began = time.perf_counter()
            executor.run(batch)
            times.append(time.perf_counter() - began)
        return times

    with ThreadPoolExecutor(calls) as pool:
        until = time.perf_counter() + SECONDS
        found = [one for times in pool.map(repeat, [until] * calls) for one in times]
    return statistics.median(found)


def _tokenizer(model: Model) -> tuple[float, float]:
    """CPU seconds of a text, and of each token, by the straight line through a short and a long text."""
    (short, short_seconds), (long, long_seconds) = (_tokenized(model, words) for words in (1, 100))
    token = max(0.0, (long_seconds - short_seconds) / (long - short))
    return max(0.0, short_seconds - short * token), token


def _tokenized(model: Model, words: int) -> tuple[int, float]:
    """Tokens and seconds of one text, as a request of one text takes them."""
    text = " ".join([TEXT] * words)
    times: list[float] = []
    for _ in range(REQUESTS):
        began = time.perf_counter()
        (row,) = model.tokenizer.encode([text], max_length=sys.maxsize)
        times.append(time.perf_counter() - began)
    return len(row.ids), statistics.median(times)


def _gpu_name() -> str:
    found = gpus()
    return "unknown GPU" if isinstance(found, str) else found[0].name


def _source() -> str:
    return f"bei-plan --measure, bei {bei.__version__}, {datetime.now(timezone.utc).date().isoformat()}"
