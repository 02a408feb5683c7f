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
from bei.runtime.capacity.curve import REST, RESTED, EngineCurve, HostCosts, Point, grid, shape_of
from bei.runtime.capacity.probe import TEXT, Instant, Probe, Spent, probing
from bei.runtime.cpu import processor, usable_cpus
from bei.runtime.executor import Executor, Row
from bei.runtime.model import Model

CPU_MAX_TOKENS = 1024
"""Where a CPU engine's calls are long since slower a token, and only add to the latency."""

SECONDS, CALLS = 0.15, 5
"""Each size runs for so long, and so many times at least."""

ONE, MANY = 1, 32
"""Texts of the requests that tell what a request costs, and what a text."""

REQUESTS, REQUEST_SECONDS = 200, 5.0
"""So many, or as many as are done in the time, but a twentieth at least."""

Advance = Callable[[str], None]


def measure_engine(model: Model, advance: Advance = lambda what: None) -> EngineCurve:
    """Every size of the grid: after a rest, with one call in flight, and with as many as the engine takes."""
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
        for calls in sorted({RESTED, 1, concurrency}):
            how = "rested" if calls == RESTED else f"{calls} in flight"
            advance(f"{record.target}: {rows} × {length} tokens, {how}")
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
    """Tokenizer and server: by themselves, and between the calls of the model's engine."""
    advance("tokenizer")
    per_text, per_token = _tokenizer(model)
    tokens, _ = _tokenized(model, 1)
    advance("server")
    with probing(model, Instant(model)) as probe:
        one, many = _asked(probe, ONE), _asked(probe, MANY)
    with probing(model, model.executor) as probe:
        beside = _asked(probe, ONE, pause=REST)
    text = max(0.0, (many.loop - one.loop) / (MANY - ONE))
    return HostCosts(
        device=processor(),
        cores=usable_cpus(),
        source=_source(),
        request=max(0.0, one.loop - text),
        text=text,
        tokenize_request=max(0.0, one.tokenizer - per_text - tokens * per_token),
        tokenize_text=per_text,
        tokenize_token=per_token,
        beside_engine=max(1.0, (beside.loop + beside.tokenizer) / (one.loop + one.tokenizer)),
        idle=max(0.0, beside.idle),
    )


class Asked(NamedTuple):
    """Seconds a request: of CPU that the event loop and the tokenizer's threads took (mean), and of its answer's time
    that went by without them and the engine (median)."""

    loop: float
    tokenizer: float
    idle: float


def _asked(probe: Probe, texts: int, pause: float = 0.0) -> Asked:
    """Requests of so many texts, each ``pause`` seconds after the answer to the one before."""
    probe.ask(texts)
    until = time.perf_counter() + REQUEST_SECONDS
    spent: list[Spent] = []
    idle: list[float] = []
    while len(idle) < REQUESTS // 20 or (len(idle) < REQUESTS and time.perf_counter() < until):
        before, latency = probe.spent(), probe.ask(texts)
        time.sleep(pause)  # in which the server does what is left to do after an answer
        spent.append(Spent(*np.subtract(probe.spent(), before).tolist()))
        idle.append(latency - sum(spent[-1]))
    loop, tokenizer, _ = np.mean(spent, axis=0).tolist()
    return Asked(loop, tokenizer, statistics.median(idle))


def _seconds(executor: Executor, batch: list[Row], calls: int) -> float:
    """Of one call, with ``calls`` of them in flight all the time, or RESTED."""
    executor.run(batch)

    def repeat(until: float) -> list[float]:
        times: list[float] = []
        while len(times) < CALLS or time.perf_counter() < until:
            if calls == RESTED:
                time.sleep(REST)
            began = time.perf_counter()
            executor.run(batch)
            times.append(time.perf_counter() - began)
        return times

    lanes = max(1, calls)
    with ThreadPoolExecutor(lanes) as pool:
        until = time.perf_counter() + SECONDS
        found = [one for times in pool.map(repeat, [until] * lanes) for one in times]
    return statistics.median(found)


def _tokenizer(model: Model) -> tuple[float, float]:
    """CPU seconds of a text, and of each token, by the straight line through a short and a long text."""
    (short, short_seconds), (long, long_seconds) = (_tokenized(model, times) for times in (1, 10))
    token = max(0.0, (long_seconds - short_seconds) / (long - short))
    return max(0.0, short_seconds - short * token), token


def _tokenized(model: Model, times: int) -> tuple[int, float]:
    """Tokens and seconds of so many times the text in one, as a request of one text takes them."""
    text = " ".join([TEXT] * times)
    took: list[float] = []
    for _ in range(REQUESTS):
        began = time.perf_counter()
        (row,) = model.tokenizer.encode([text], max_length=sys.maxsize)
        took.append(time.perf_counter() - began)
    return len(row.ids), statistics.median(took)


def _gpu_name() -> str:
    found = gpus()
    return "unknown GPU" if isinstance(found, str) else found[0].name


def _source() -> str:
    return f"bei-plan --measure, bei {bei.__version__}, {datetime.now(timezone.utc).date().isoformat()}"
