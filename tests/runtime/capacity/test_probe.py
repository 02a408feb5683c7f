"""What the probe of a running server counts."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tests.runtime.tiny import write_bundle

import bei
from bei.runtime.capacity.probe import Timed, probing
from bei.runtime.executor import Output, Row


class Slow:
    """Runs for as long as it is told to."""

    target = "slow"
    concurrency = 2

    def __init__(self, wait: Callable[[], object]) -> None:
        self._wait = wait

    def run(self, rows: list[Row]) -> Output:
        self._wait()
        return np.zeros((len(rows), 1), np.float32)

    def describe(self) -> dict[str, object]:
        return {"slow": True}

    def close(self) -> None: ...


def test_calls_side_by_side_count_once() -> None:
    both = threading.Barrier(2)

    def wait() -> None:
        both.wait(60)
        time.sleep(0.05)

    engine = Timed(Slow(wait))
    threads = [threading.Thread(target=engine.run, args=([],)) for _ in range(2)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.05 <= engine.seconds <= time.perf_counter() - began
    assert (engine.target, engine.concurrency, engine.describe()) == ("slow", 2, {"slow": True})


def test_what_a_request_costs_is_split_among_those_who_work_for_it(tmp_path: Path) -> None:
    with bei.load(write_bundle(tmp_path / "tiny.bundle")) as model, probing(model, model.executor) as probe:
        probe.ask(1)
        before, latency = probe.spent(), probe.ask(8)
        after = probe.spent()
    loop, tokenizer, engine = np.subtract(after, before)
    assert loop > 0 and tokenizer > 0
    assert 0 < engine < latency
