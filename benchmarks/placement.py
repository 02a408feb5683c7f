"""A CPU engine's threads placed on cores of their own, against leaving that to the kernel.

    python -m benchmarks.placement [--rounds 3] [--calls 60]

One text of 16, 64 and 128 tokens after rests of 0 to 30 ms, and two callers without rest; all-MiniLM-L6-v2 fp32, as many
threads as there are cores. Both forms in turn.
"""

import argparse
import os
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from benchmarks.minilm import compile_bundle
from benchmarks.quiet import quiet
from benchmarks.record import save, spread

import bei
from bei.runtime.executor import Executor, Row

RESTS = (0.0, 0.003, 0.01, 0.03)
CALLERS = 2
SECONDS = 1.0


def rested(executor: Executor, batch: list[Row], rest: float, calls: int) -> float:
    """Median milliseconds of a call that begins so many seconds after the one before it ended."""
    times = []
    for _ in range(calls):
        time.sleep(rest)
        began = time.perf_counter()
        executor.run(batch)
        times.append(time.perf_counter() - began)
    return 1000 * float(np.median(times))


def crowded(executor: Executor, batch: list[Row]) -> float:
    """Calls a second of two callers."""
    until = time.perf_counter() + SECONDS

    def repeat() -> int:
        done = 0
        while time.perf_counter() < until:
            executor.run(batch)
            done += 1
        return done

    with ThreadPoolExecutor(CALLERS) as pool:
        return sum(future.result() for future in [pool.submit(repeat) for _ in range(CALLERS)]) / SECONDS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=60, help="of a size and a rest in a round")
    args = parser.parse_args()
    found: dict[tuple[int, str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        bundle = compile_bundle(Path(temporary) / "minilm.bundle")
        models = {"placed": stack.enter_context(bei.load(bundle))}
        with mock.patch("bei.runtime.executors.onnxruntime.placement", lambda threads: None):
            models["left to the kernel"] = stack.enter_context(bei.load(bundle))
        (row,) = models["placed"].tokenizer.encode(["a text of no meaning"], max_length=512)
        for _ in range(args.rounds):
            for tokens in (16, 64, 128):
                batch = [Row(ids=np.resize(row.ids, tokens), types=np.resize(row.types, tokens))]
                for name, model in models.items():
                    engine = model.executor
                    for rest in RESTS:
                        took = quiet(lambda: rested(engine, batch, rest, args.calls))  # noqa: B023 - runs at once
                        found[tokens, name, f"after {1000 * rest:g} ms, ms"].append(took)
                    rate = quiet(lambda: crowded(engine, batch))  # noqa: B023 - runs at once
                    found[tokens, name, f"{CALLERS} callers, calls/s"].append(rate)
    rows: dict[tuple[int, str], dict[str, object]] = {}
    for (tokens, name, what), values in found.items():
        rows.setdefault((tokens, name), {"tokens": tokens, "threads": name})[what] = spread(values)
    what = f"A CPU engine's threads placed, and not: all-MiniLM-L6-v2 fp32, {len(os.sched_getaffinity(0))} threads, median of {args.rounds} rounds"
    save("placement", what, list(rows.values()))


if __name__ == "__main__":
    main()
