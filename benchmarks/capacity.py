"""bei-plan's simulation against measured runs of bei-serve on this CPU: three loads, and saturation.

    python -m benchmarks.capacity [--loads 0.3 0.5 0.7] [--requests 1000] [--texts 1] [--rounds 3] [--cores 1]

The server has the first ``--cores`` cores and the load generator the others, so that neither takes from the other; without
others they share. In every round `bei-plan --measure` measures the engine's curve and the server's costs on the server's
cores: the machine's own speed drifts. Then requests go to the server over HTTP at the moments of a Poisson process, at a
share of its measured capacity, and the same requests at the same moments to the simulation. A few clients that wait for
their answers measure the capacity, and are simulated too. A run during which other processes used the machine is said to be
disturbed and made again. Texts: all-MiniLM-L6-v2, lognormal length, 67 tokens mean.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import numpy.typing as npt
from benchmarks import load
from benchmarks.minilm import compile_bundle, lognormal_texts
from benchmarks.quiet import quiet
from benchmarks.record import save
from benchmarks.serving import Server, bei_serve, running

from bei.runtime.batching import budget_for
from bei.runtime.bundle import Bundle, read_bundle
from bei.runtime.capacity.simulation import WARM_UP, ReplicaModel, simulate, simulate_clients
from bei.runtime.capacity.store import read_curves
from bei.runtime.capacity.traffic import Arrival
from bei.runtime.tokenizer import Tokenizer, open_tokenizer

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """A running server and what is known of it."""

    bundle: Bundle
    tokenizer: Tokenizer
    server: Server

    def lengths(self, batches: Texts) -> list[tuple[int, ...]]:
        """Tokens of each request's texts."""
        limit = self.bundle.manifest.limits.max_length
        return [
            tuple(len(row.ids) for row in self.tokenizer.encode(batch, max_length=limit)) for batch in batches
        ]

    def replica(self, cores: set[int]) -> ReplicaModel:
        """As `bei-plan --measure` finds it, on the server's cores."""
        file = self.bundle.path.with_suffix(".json")
        command = [sys.executable, "-m", "bei.runtime.capacity.cli", str(self.bundle.path), "--measure"]
        command += ["--curves", str(file)]
        with on(cores):
            quiet(
                lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL),
                self.server.process.pid,
            )
        (curve,), (host,) = (found := read_curves(file)).engines, found.hosts
        (record,) = (one for one in self.bundle.manifest.engines if one.target == curve.target)
        return ReplicaModel(curve=curve, host=host, budget=budget_for(record, self.bundle.manifest.limits))

    def saturated(self, replica: ReplicaModel, batches: Texts, into: Comparison) -> float:
        """Clients that wait for their answers; texts a second."""
        measured = quiet(lambda: load.run(self.server.url, batches, CLIENTS), self.server.process.pid)
        seen = simulate_clients(replica, self.lengths(batches), CLIENTS)
        into.add(measured.latencies, measured.texts_per_second, seen.counted, seen.texts_per_second)
        return measured.texts_per_second

    def at_rate(
        self, replica: ReplicaModel, batches: Texts, rate: float, seed: int, into: Comparison
    ) -> None:
        """Requests at random moments, ``rate`` of them a second."""
        gaps = np.random.default_rng(seed).exponential(1 / rate, len(batches))
        sent = quiet(
            lambda: load.run_at(self.server.url, batches, np.cumsum(gaps).tolist()), self.server.process.pid
        )
        lengths = self.lengths(batches)
        seen = simulate(replica, [Arrival(one.at, each) for one, each in zip(sent, lengths, strict=True)])
        seconds = max(one.at + one.latency for one in sent)
        texts = sum(map(len, batches))
        into.add([one.latency for one in sent], texts / seconds, seen.counted, seen.texts_per_second)


@contextlib.contextmanager
def on(cores: set[int]) -> Iterator[None]:
    """What is started here runs on these cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loads", nargs="+", type=float, default=[0.3, 0.5, 0.7], help="of the capacity")
    parser.add_argument("--requests", type=int, default=1000, help="of a load in a round")
    parser.add_argument("--texts", type=int, default=1, help="in a request")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=1, help="of the server")
    args = parser.parse_args()
    everything = os.sched_getaffinity(0)
    cores = set(sorted(everything)[: args.cores])
    full = Comparison(f"{CLIENTS} clients, saturated")
    loads = {share: Comparison(f"{share:.0%} of saturation") for share in args.loads}
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        bundle = read_bundle(compile_bundle(Path(temporary) / "minilm.bundle"))
        with on(cores):
            server = stack.enter_context(running("bei-serve", *bei_serve(bundle.path, args.cores)))
        stack.enter_context(on(everything - cores or everything))
        bench = Bench(bundle=bundle, tokenizer=open_tokenizer(bundle), server=server)
        for turn in range(args.rounds):
            replica = bench.replica(cores)
            texts = lognormal_texts(args.requests * args.texts, seed=turn)
            batches = [texts[start : start + args.texts] for start in range(0, len(texts), args.texts)]
            capacity = bench.saturated(replica, batches[: max(CLIENTS, len(batches) // 2)], full)
            for share, comparison in loads.items():
                bench.at_rate(replica, batches, share * capacity / args.texts, turn, comparison)
    rows = [row for one in (*loads.values(), full) for row in one.rows()]
    where = "the load generator on the other" if everything - cores else "shared with the load generator"
    what = (
        f"Simulated against measured: bei-serve on {len(cores)} core(s), {where}, all-MiniLM-L6-v2 fp32; {args.rounds} "
        f"rounds of {args.requests} requests of {args.texts} text(s), lognormal, 67 tokens mean"
    )
    save("capacity" if everything - cores else "capacity_shared", what, rows)


if __name__ == "__main__":
    main()
