"""bei-plan's simulation against measured runs of bei-serve on this CPU: three loads, and saturation.

    python -m benchmarks.capacity [--loads 0.3 0.5 0.7] [--requests 1500] [--texts 1] [--rounds 3]

First the curve and the server's costs are measured, as `bei-plan --measure` does. Then requests go to the server over HTTP at
the moments of a Poisson process, at a share of its measured capacity, and the same requests at the same moments to the
simulation. A few clients that wait for their answers measure the capacity, and are simulated too. The client costs a small
part of a core, which the simulation does not know of. Texts: all-MiniLM-L6-v2, lognormal length, 67 tokens mean.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

THREADS = 2
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import numpy.typing as npt
from benchmarks import load
from benchmarks.minilm import compile_bundle, lognormal_texts
from benchmarks.record import save
from benchmarks.serving import commands, running

import bei
from bei.runtime.capacity.measure import measure_engine, measure_host
from bei.runtime.capacity.simulation import WARM_UP, ReplicaModel, simulate, simulate_clients
from bei.runtime.capacity.traffic import Arrival
from bei.runtime.model import Model

CLIENTS = 16
Texts = Sequence[Sequence[str]]
Floats = npt.NDArray[np.float64]


class Comparison:
    """One load, all rounds of it: latencies in seconds after the warm-up, and texts a second."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.measured: list[Floats] = []
        self.simulated: list[Floats] = []
        self.rates: list[tuple[float, float]] = []

    def add(self, measured: Sequence[float], rate: float, simulated: Floats, simulated_rate: float) -> None:
        self.measured.append(np.array(measured[int(WARM_UP * len(measured)) :]))
        self.simulated.append(simulated)
        self.rates.append((rate, simulated_rate))

    def rows(self) -> Iterator[dict[str, Any]]:
        measured, simulated = np.concatenate(self.measured), np.concatenate(self.simulated)
        rate, simulated_rate = np.mean(self.rates, axis=0)
        yield self._row("texts/s", rate, simulated_rate)
        for share in (0.5, 0.99):
            values = (1000 * float(np.quantile(one, share)) for one in (measured, simulated))
            yield self._row(f"p{round(100 * share)} ms", *values)

    def _row(self, what: str, measured: float, simulated: float) -> dict[str, Any]:
        return {
            "load": self.name,
            "what": what,
            "measured": f"{measured:.1f}",
            "simulated": f"{simulated:.1f}",
            "simulated / measured": f"{simulated / measured:.3f}",
        }


def lengths_of(model: Model, batches: Texts) -> list[tuple[int, ...]]:
    """Tokens of each request's texts."""
    return [
        tuple(len(row.ids) for row in model.tokenizer.encode(batch, max_length=model.max_length))
        for batch in batches
    ]


def saturated(replica: ReplicaModel, url: str, model: Model, batches: Texts, into: Comparison) -> float:
    """Clients that wait for their answers; texts a second."""
    measured = load.run(url, batches, CLIENTS)
    seen = simulate_clients(replica, lengths_of(model, batches), CLIENTS)
    into.add(measured.latencies, measured.texts_per_second, seen.counted, seen.texts_per_second)
    return measured.texts_per_second


def at_rate(
    replica: ReplicaModel, url: str, model: Model, batches: Texts, rate: float, seed: int, into: Comparison
) -> None:
    """Requests at random moments, ``rate`` of them a second."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, len(batches))
    sent = load.run_at(url, batches, np.cumsum(gaps).tolist())
    arrivals = [
        Arrival(one.at, lengths) for one, lengths in zip(sent, lengths_of(model, batches), strict=True)
    ]
    seen = simulate(replica, arrivals)
    seconds = max(one.at + one.latency for one in sent)
    texts = sum(map(len, batches))
    into.add([one.latency for one in sent], texts / seconds, seen.counted, seen.texts_per_second)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loads", nargs="+", type=float, default=[0.3, 0.5, 0.7], help="of the capacity")
    parser.add_argument("--requests", type=int, default=1500, help="of a load in a round")
    parser.add_argument("--texts", type=int, default=1, help="in a request")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    full = Comparison(f"{CLIENTS} clients, saturated")
    loads = {share: Comparison(f"{share:.0%} of saturation") for share in args.loads}
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        bundle = compile_bundle(Path(temporary) / "minilm.bundle")
        model = stack.enter_context(bei.load(bundle, threads=THREADS))
        replica = ReplicaModel(curve=measure_engine(model), host=measure_host(model), budget=model.budget)
        server = stack.enter_context(running("bei-serve", *commands(bundle, None)["bei-serve"]))
        for turn in range(args.rounds):
            texts = lognormal_texts(args.requests * args.texts, seed=turn)
            batches = [texts[start : start + args.texts] for start in range(0, len(texts), args.texts)]
            capacity = saturated(replica, server.url, model, batches[: max(CLIENTS, len(batches) // 2)], full)
            for share, comparison in loads.items():
                rate = share * capacity / args.texts
                at_rate(replica, server.url, model, batches, rate, turn, comparison)
    rows = [row for one in (*loads.values(), full) for row in one.rows()]
    what = (
        f"Simulated against measured: bei-serve, all-MiniLM-L6-v2 fp32, {THREADS} threads; {args.rounds} rounds of "
        f"{args.requests} requests of {args.texts} text(s), lognormal, 67 tokens mean"
    )
    save("capacity", what, rows)


if __name__ == "__main__":
    main()
