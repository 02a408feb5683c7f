"""The fewest replicas, and why not fewer."""

import msgspec
import pytest
from tests.runtime.capacity.models import FREE, constant, engine, linear, replica

from bei.manifest import Limits
from bei.runtime.capacity.curve import HostCosts
from bei.runtime.capacity.search import CONFIRM, Promise, best, budgets
from bei.runtime.capacity.simulation import ReplicaModel, simulate
from bei.runtime.capacity.traffic import Traffic, Uniform

LIMITS = Limits(max_length=128, max_batch_tokens=1024, max_batch=64)


def promise(rate: float, p99: float, *, texts: int = 1) -> Promise:
    traffic = Traffic(rate=rate, lengths=Uniform(10, 60), texts=Uniform(texts, texts), max_length=128)
    return Promise(traffic=traffic, p99=p99, requests=600)


def keeps(model: ReplicaModel, asked: Promise, replicas: int, *, times: int, seed: int) -> bool:
    arrivals = asked.traffic.arrivals(times * asked.requests, share=1 / replicas, seed=asked.seed + seed)
    return simulate(model, arrivals).quantile(0.99) <= asked.p99


def test_one_less_would_break_the_promise() -> None:
    model, asked = replica(engine(constant(0.01)), max_rows=1), promise(1000, 0.05)
    answer = best([model], asked)
    assert answer.replicas is not None and answer.seen is not None
    assert answer.seen.quantile(0.99) <= 0.05
    assert 1000 * 0.01 < answer.replicas < 3 * 1000 * 0.01
    trial, confirmation = {"times": 1, "seed": 0}, {"times": CONFIRM, "seed": 1}
    assert keeps(model, asked, answer.replicas, **confirmation)
    less = answer.replicas - 1
    assert not (keeps(model, asked, less, **trial) and keeps(model, asked, less, **confirmation))


def test_a_million_requests_a_second_are_so_many_replicas_of_one() -> None:
    model = replica(engine(constant(0.01)), max_rows=1)
    few, many = (best([model], promise(rate, 0.05)).replicas for rate in (1000, 1_000_000))
    assert few is not None and many is not None
    assert many == pytest.approx(1000 * few, rel=0.1)


def test_a_promise_shorter_than_one_request_cannot_be_kept() -> None:
    answer = best([replica(engine(constant(0.01)))], promise(1, 0.005))
    assert answer.replicas is None and answer.seen is None
    assert answer.alone == pytest.approx(0.01)
    assert answer.bound == "latency"


def test_the_budget_that_needs_fewest_wins() -> None:
    curve = engine(linear(0.01, 1e-6))
    models = [replica(curve, max_tokens=tokens) for tokens in (64, 1024)]
    answer = best(models, promise(2000, 0.1))
    assert answer.model.budget.max_tokens == 1024
    alone = best(models[:1], promise(2000, 0.1))
    assert answer.replicas is not None and alone.replicas is not None
    assert answer.replicas < alone.replicas


def host(cores: int = 8, **changes: float) -> HostCosts:
    return msgspec.structs.replace(FREE, cores=cores, **changes)


@pytest.mark.parametrize(
    ("model", "p99", "bound"),
    [
        (replica(engine(constant(0.005)), max_rows=1), 1.0, "engine"),
        (replica(engine(constant(1e-5)), host=host(request=0.004)), 1.0, "event loop"),
        (replica(engine(constant(1e-5)), host=host(tokenize_text=0.008)), 1.0, "tokenizer"),
        (
            replica(engine(constant(1e-5)), host=host(cores=1, request=0.003, tokenize_text=0.003)),
            1.0,
            "host",
        ),
        (replica(engine(constant(0.01)), max_rows=1), 0.03, "latency"),
    ],
    ids=["engine", "event loop", "tokenizer", "host", "latency"],
)
def test_what_bounds_a_replica(model: ReplicaModel, p99: float, bound: str) -> None:
    assert best([model], promise(1000, p99)).bound == bound


def test_budgets_double_up_to_what_was_measured_and_the_bundle_allows() -> None:
    curve = engine(constant(0.01), kind="cpu")
    assert [one.max_tokens for one in budgets(curve, LIMITS, None)] == [64, 128, 256, 512, 1024]
    small = msgspec.structs.replace(LIMITS, max_batch_tokens=300)
    assert [one.max_tokens for one in budgets(curve, small, None)] == [75, 150, 300]
    assert {one.max_rows for one in budgets(curve, LIMITS, None)} == {64}
