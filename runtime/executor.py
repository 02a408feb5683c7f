"""What runs one engine: blocking, one batch at a time. The scheduler and the server know only this protocol."""

import contextlib
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from bei.errors import EngineLost

Ids = npt.NDArray[np.int32]
Output = npt.NDArray[np.float32]


class Row(msgspec.Struct, frozen=True, kw_only=True, eq=False, gc=False):
    """One tokenised input, special tokens included: ids and token types int32 [n].

    ``prompt_tokens`` counts the leading tokens that pooling leaves out when the head says so; ``dropped`` the tokens
    that truncation cut off.
    """

    ids: Ids
    types: Ids
    prompt_tokens: int = 0
    dropped: int = 0


class Executor(Protocol):
    """One engine on one device. ``concurrency`` is how many calls may run at once, from as many threads."""

    target: str
    concurrency: int

    def run(self, rows: list[Row]) -> Sequence[Output] | Output:
        """The head's output, fp32: [B, d] for pooled heads, one [n_i, d] a row for per-token ones.

        Rows come in any order and length; what the engine needs (padding, packing) is the executor's business.
        Raises EngineError; EngineLost when it will never run again in this process.
        """

    def describe(self) -> dict[str, Any]:
        """Facts for /info and bei-inspect: device name, library versions, memory."""

    def close(self) -> None:
        """Release the engine and its buffers; further calls are errors."""


class Guarded:
    """An executor for any number of threads: those beyond its concurrency wait. ``tokens`` counts what it ran."""

    def __init__(self, executor: Executor) -> None:
        self.target = executor.target
        self.concurrency = executor.concurrency
        self._executor = executor
        self._free = threading.Semaphore(executor.concurrency)
        self._counting = threading.Lock()
        self.tokens = 0

    def run(self, rows: list[Row]) -> Sequence[Output] | Output:
        with self._free:
            outputs = self._executor.run(rows)
        with self._counting:
            self.tokens += sum(len(row.ids) for row in rows)
        return outputs

    def describe(self) -> dict[str, Any]:
        return self._executor.describe()

    def close(self) -> None:
        """Waits for the calls that run."""
        for _ in range(self.concurrency):
            self._free.acquire()
        with contextlib.suppress(EngineLost):  # nothing of a lost engine can be released
            self._executor.close()
        self._free.release(self.concurrency)
