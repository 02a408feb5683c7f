"""The fewest replicas that keep a promise, by simulating one of them at its share of the traffic.

Requests are spread at random, so each of n replicas sees an n-th of a Poisson stream, which is one again: one replica
tells of all, however many there are. A balancer that looks at the load does no worse.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from bei.manifest import EngineRecord, Limits
from bei.runtime.batching import Budget, budget_of
from bei.runtime.capacity.curve import EngineCurve
from bei.runtime.capacity.simulation import Part, ReplicaModel, Seen, simulate, simulate_clients
from bei.runtime.capacity.traffic import Traffic
from bei.runtime.service import TOKENIZER_THREADS

REQUESTS = 3000
"""Of a trial."""

CONFIRM = 3
"""The run that an answer is taken from is so many times as long as a trial."""

TEXTS = 20
"""In a request of a trial, on average; where they hold more, trials have fewer requests, but a third of them at least."""

BUSY = 0.8
"""A part that is busy more than this is what bounds a replica; below it is the promise."""

MAX_REPLICAS = 1 << 20

Bound = Part | Literal["latency"]
Advance = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Promise:
    """``p99`` in seconds: of a hundred requests, ninety-nine are answered within it. A trial sends ``requests``."""

    traffic: Traffic
    p99: float
    seed: int = 0
    requests: int = REQUESTS


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """``replicas`` that keep the promise, and what one of them looks like then. None where no number of them does:
    ``alone`` is the 99th percentile, in seconds, of requests that each find an idle replica."""

    model: ReplicaModel
    replicas: int | None
    seen: Seen | None
    alone: float

    @property
    def bound(self) -> Bound:
        """What keeps a replica from taking more."""
        if self.seen is None:
            return "latency"
        part, share = max(self.seen.busy.items(), key=lambda item: item[1])
        return part if share >= BUSY else "latency"


def budgets(curve: EngineCurve, limits: Limits, record: EngineRecord | None) -> list[Budget]:
    """Token budgets worth a trial: doubling, up to what was measured and the bundle allows."""
    most = min(curve.max_tokens, limits.max_batch_tokens)
    sizes = [most]
    while sizes[-1] // 2 >= (64 if curve.kind == "cpu" else 1024):
        sizes.append(sizes[-1] // 2)
    return [budget(curve, limits, record, tokens) for tokens in reversed(sizes)]


def budget(curve: EngineCurve, limits: Limits, record: EngineRecord | None, tokens: int) -> Budget:
    """As the runtime would make it; ``record`` None where the bundle has no such engine yet."""
    profiles = () if record is None else record.profiles
    return budget_of(curve.kind, curve.layout, limits, tokens, profiles)


def best(models: Sequence[ReplicaModel], promise: Promise, advance: Advance = lambda what: None) -> Answer:
    """Of one device at several budgets: the fewest replicas, and of equally many those that answer soonest."""
    trials = [_Trials(model, promise) for model in models]
    alone = min(one.alone for one in trials)
    count: int | None = None
    winners: list[_Trials] = []
    for one in trials:
        advance(f"{one.model.curve.device}: {one.model.budget.max_tokens} tokens a batch")
        found = one.fewest(count) if one.alone <= promise.p99 else None
        if found is not None:
            winners = [*(winners if found == count else []), one]
            count = found
    if count is None:
        return Answer(model=models[0], replicas=None, seen=None, alone=alone)
    least = count
    chosen = min(winners, key=lambda one: one.p99(least))
    more = 1
    while (seen := chosen.confirmed(count)).quantile(0.99) > promise.p99:  # seldom: the trials were kinder
        count, more = count + more, 2 * more
        if count > MAX_REPLICAS:
            return Answer(model=chosen.model, replicas=None, seen=None, alone=chosen.alone)
    return Answer(model=chosen.model, replicas=count, seen=seen, alone=chosen.alone)


class _Trials:
    """Runs of one replica at an n-th of the traffic."""

    def __init__(self, model: ReplicaModel, promise: Promise) -> None:
        self.model = model
        self._promise = promise
        sizes = promise.traffic.texts.sample(np.random.default_rng(promise.seed), 1000)
        self._texts = float(sizes.mean())
        self._seen: dict[int, Seen] = {}

    @cached_property
    def alone(self) -> float:
        """The 99th percentile of requests that never meet another."""
        arrivals = self._promise.traffic.arrivals(self._requests // 3, share=1, seed=self._promise.seed)
        return simulate_clients(self.model, [one.lengths for one in arrivals], 1).quantile(0.99)

    def fewest(self, at_most: int | None) -> int | None:
        """The smallest number that keeps the promise; None where it is more than ``at_most`` (or than anybody has)."""
        low = max(0, math.ceil(self._least) - 1)
        if at_most is not None and (low >= at_most or not self._keeps(at_most)):
            return None
        high = at_most or low + 1
        while at_most is None and not self._keeps(high):
            low, high = high, 2 * high
            if high > MAX_REPLICAS:
                return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._keeps(middle) else (middle, high)
        return high

    def p99(self, replicas: int) -> float:
        """Infinite where the trial was given up."""
        if replicas not in self._seen:
            self._seen[replicas] = self._run(replicas, 1, self._promise.seed, limit=self._promise.p99)
        seen = self._seen[replicas]
        return math.inf if seen.gave_up else seen.quantile(0.99)

    def confirmed(self, replicas: int) -> Seen:
        """A longer run, with other random numbers than the trials."""
        return self._run(replicas, CONFIRM, self._promise.seed + 1)

    def _keeps(self, replicas: int) -> bool:
        return self.p99(replicas) <= self._promise.p99

    def _run(self, replicas: int, times: int, seed: int, *, limit: float = math.inf) -> Seen:
        arrivals = self._promise.traffic.arrivals(times * self._requests, share=1 / replicas, seed=seed)
        return simulate(self.model, arrivals, limit=limit)

    @property
    def _requests(self) -> int:
        return int(self._promise.requests * max(1 / 3, min(1.0, TEXTS / self._texts)))

    @property
    def _least(self) -> float:
        """Replicas without which some part would have to be busy more than always, were all batches the best ones."""
        traffic, host = self._promise.traffic, self.model.host
        lengths = [n for one in traffic.arrivals(500, share=1, seed=self._promise.seed) for n in one.lengths]
        tokens = sum(lengths) / len(lengths)
        event_loop = host.request + self._texts * host.text
        tokenizer = self._texts * (host.tokenize_text + tokens * host.tokenize_token) / TOKENIZER_THREADS
        return traffic.rate * max(event_loop, tokenizer, self._texts * tokens / self._best_rate)

    @property
    def _best_rate(self) -> float:
        """Tokens a second of the best measured batch."""
        return max(point.calls * point.tokens / point.seconds for point in self.model.curve.points)
