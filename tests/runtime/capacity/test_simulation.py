"""A replica in virtual time: the scheduler that serves, and the laws that queues obey."""

from collections import Counter

import msgspec
import numpy as np
import pytest
from tests.runtime.capacity.models import FREE, constant, engine, linear, replica

import bei.runtime.service
from bei.runtime.capacity import simulation
from bei.runtime.capacity.curve import REST, RESTED, Point
from bei.runtime.capacity.simulation import (
    ModelledExecutor,
    Replica,
    Seen,
    simulate,
    simulate_clients,
)
from bei.runtime.capacity.traffic import Arrival, Lognormal, Traffic, Uniform
from bei.runtime.capacity.virtual_time import VirtualLoop
from bei.runtime.executor import Output, Row
from bei.runtime.scheduler import Scheduler
from bei.runtime.serve import Options

ONE = Uniform(1, 1)
HOST = msgspec.structs.replace(
    FREE,
    cores=2,
    request=3e-4,
    text=5e-5,
    tokenize_request=1e-4,
    tokenize_text=2e-5,
    tokenize_token=1e-6,
    idle=1e-4,
)


def arrivals(rate: float, count: int, *, texts: Uniform = ONE, seed: int = 0) -> list[Arrival]:
    lengths = Lognormal(30, 0.7)
    traffic = Traffic(rate=rate, lengths=lengths, texts=texts, max_length=128)
    return traffic.arrivals(count, share=1, seed=seed)


def mean(seen: Seen) -> float:
    return float(seen.counted.mean())


def test_it_is_the_scheduler_that_serves() -> None:
    loop = VirtualLoop()
    try:
        scheduler = Replica(loop, replica(engine(constant(0.01)))).scheduler
    finally:
        loop.close()
    assert type(scheduler) is Scheduler is vars(bei.runtime.service)["Scheduler"]


def test_the_same_seed_gives_the_same_times_to_the_last_bit() -> None:
    model = replica(engine(linear(0.004, 1e-4), kind="cpu", concurrency=2, crowded=1.7), host=HOST)
    first, again = (simulate(model, arrivals(60, 400, texts=Uniform(1, 4))) for _ in range(2))
    assert (first.latencies == again.latencies).all()
    assert first.busy == again.busy and first.batches == again.batches
    other = simulate(model, arrivals(60, 400, texts=Uniform(1, 4), seed=1))
    assert (first.latencies != other.latencies).any()


def test_every_text_runs_once_and_every_request_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: Counter[int] = Counter()
    original = ModelledExecutor.run

    def counting(self: ModelledExecutor, rows: list[Row]) -> Output:
        ran.update(len(row.ids) for row in rows)
        return original(self, rows)

    monkeypatch.setattr(ModelledExecutor, "run", counting)
    asked = arrivals(300, 500, texts=Uniform(1, 9))
    seen = simulate(replica(engine(linear(0.001, 1e-5), concurrency=3), host=HOST), asked)
    assert not np.isnan(seen.latencies).any() and seen.refused == 0
    assert ran == Counter(length for one in asked for length in one.lengths)
    assert seen.texts == ran.total()


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_without_batching_it_is_the_queue_of_the_textbook(load: float) -> None:
    """M/D/1: with Poisson arrivals and a constant time s of service the mean wait is load · s / 2 (1 − load)."""
    service = 0.01
    seen = simulate(replica(engine(constant(service)), max_rows=1), arrivals(load / service, 6000))
    wait = load * service / (2 * (1 - load))
    assert mean(seen) == pytest.approx(service + wait, rel=0.05)
    assert seen.busy["engine"] == pytest.approx(load, rel=0.05)
    assert seen.batches == 6000


def test_two_lanes_wait_less_than_one_that_is_as_fast_as_both_is_busy() -> None:
    one = simulate(replica(engine(constant(0.01)), max_rows=1), arrivals(80, 2000))
    two = simulate(replica(engine(constant(0.01), concurrency=2), max_rows=1), arrivals(80, 2000))
    assert mean(two) < mean(one)


def test_a_request_by_itself_takes_the_sum_of_its_parts() -> None:
    model = replica(engine(constant(0.02)), host=HOST)
    seen = simulate(model, [Arrival(float(n), (10, 20)) for n in range(20)])
    tokenize = HOST.tokenize_request + 2 * HOST.tokenize_text + 30 * HOST.tokenize_token
    expected = HOST.idle + HOST.request + 2 * HOST.text + tokenize
    assert seen.latencies == pytest.approx(np.full(20, expected + 0.02))


def test_beside_an_engine_on_its_cores_the_server_takes_longer() -> None:
    host = msgspec.structs.replace(HOST, cores=8, beside_engine=3.0)
    work = HOST.request + HOST.text + HOST.tokenize_request + HOST.tokenize_text + 10 * HOST.tokenize_token
    for kind, times in (("cuda", 1), ("cpu", 3)):
        seen = simulate(replica(engine(constant(0.02), kind=kind), host=host), [Arrival(0.0, (10,))])
        assert seen.latencies == pytest.approx([0.02 + HOST.idle + times * work])


def test_a_call_after_a_rest_takes_longer_the_longer_the_rest_was() -> None:
    hot = engine(constant(0.005)).points
    cold = tuple(Point(RESTED, one.length, one.tokens, 0.015) for one in hot)
    model = replica(engine(constant(0), points=(*cold, *hot)), max_rows=1)
    times = [
        0.0,
        0.001,
        0.020 + REST / 4,
        1.0,
    ]  # at once behind the first; a quarter of a full rest; a full one
    seen = simulate(model, [Arrival(at, (8,)) for at in times])
    assert seen.latencies == pytest.approx([0.015, 0.019, 0.0075, 0.015])


def test_batches_let_more_through_and_stay_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    original = ModelledExecutor.run

    def watching(self: ModelledExecutor, rows: list[Row]) -> Output:
        nonlocal largest
        largest = max(largest, len(rows) * max(len(row.ids) for row in rows) if len(rows) > 1 else 0)
        return original(self, rows)

    monkeypatch.setattr(ModelledExecutor, "run", watching)
    curve, asked = engine(linear(0.01, 1e-6)), arrivals(150, 1500)
    alone = simulate(replica(curve, max_rows=1), asked)
    together = simulate(replica(curve, max_tokens=256), asked)
    assert 128 < largest <= 256
    assert mean(together) < mean(alone) / 5
    assert together.batches < alone.batches


def test_the_event_loop_does_one_thing_at_a_time() -> None:
    host = msgspec.structs.replace(FREE, cores=8, request=0.01)
    seen = simulate(replica(engine(constant(1e-5)), host=host), [Arrival(0.0, (8,))] * 50)
    assert seen.latencies.max() == pytest.approx(0.5, rel=0.01)
    assert seen.busy["event loop"] == pytest.approx(1, rel=0.01)


def test_an_engine_on_the_cpu_feels_the_server() -> None:
    host = msgspec.structs.replace(FREE, cores=2, request=0.02)
    slow, asked = constant(0.05), arrivals(10, 300)
    on_gpu = simulate(replica(engine(slow), host=host), asked)
    on_cpu = simulate(replica(engine(slow, kind="cpu"), host=host), asked)
    assert mean(on_cpu) > 1.02 * mean(on_gpu)


def test_clients_that_wait_for_their_answers() -> None:
    requests = [(64,)] * 400
    service = 0.01
    model = replica(engine(constant(service)), max_rows=1)
    one, four = (simulate_clients(model, requests, clients) for clients in (1, 4))
    assert one.latencies == pytest.approx(np.full(400, service))
    assert four.texts_per_second == pytest.approx(1 / service, rel=0.02)
    assert four.quantile(0.5) == pytest.approx(4 * service, rel=0.02)


def test_the_queue_is_as_long_as_the_servers() -> None:
    assert Options().max_queue_tokens == simulation.MAX_QUEUE_TOKENS


def test_overload_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "MAX_QUEUE_TOKENS", 500)
    seen = simulate(replica(engine(constant(0.1)), max_rows=1), arrivals(100, 300))
    assert 0 < seen.refused < len(seen.counted)
    assert seen.quantile(0.99) == float("inf")


def test_it_gives_up_as_soon_as_the_promise_is_lost() -> None:
    model, asked = replica(engine(constant(0.1)), max_rows=1), arrivals(100, 3000)
    seen = simulate(model, asked, limit=0.5)
    assert seen.gave_up and seen.batches < 500
    assert not simulate(model, asked[:50], limit=60).gave_up
