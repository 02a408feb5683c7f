"""One engine of a scheduler, its threads, and whether it can still be trusted with work."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from bei.errors import EngineError
from bei.runtime.executor import Executor, Output
from bei.runtime.fair_queue import Entry

MAX_FAULTS = 3
"""Batches in a row that fail on a replica and succeed on another before it is taken out."""


class Ran(NamedTuple):
    """What came of a batch: its entries that were still wanted, their outputs, and when the engine had them."""

    entries: Sequence[Entry]
    outputs: Sequence[Output] | Output
    began: float
    ended: float


class Replica:
    """``alive`` until it is lost or found at fault too often; ``faults`` counts since the last success."""

    def __init__(self, executor: Executor, number: int) -> None:
        self.executor = executor
        self.number = number
        self.alive = True
        self.faults = 0
        self.threads = ThreadPoolExecutor(executor.concurrency, f"bei-engine-{number}")

    def run(self, batch: Sequence[Entry]) -> Ran:
        """In one of ``threads``: run what nobody has given up in the meantime. Raises what the engine raises."""
        began = time.perf_counter()
        wanted = [entry for entry in batch if not entry.ticket.dropped]
        outputs = self.executor.run([entry.row for entry in wanted]) if wanted else []
        if len(outputs) != len(wanted):
            raise EngineError(f"{self.executor.target}: gave {len(outputs)} outputs for {len(wanted)} rows")
        return Ran(wanted, outputs, began, time.perf_counter())
