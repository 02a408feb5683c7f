"""Lists of inputs to outputs: the next ones are tokenised and put into batches while the engine runs."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from bei.runtime.batching import Budget, plan
from bei.runtime.executor import Executor, Output, Row
from bei.runtime.tokenizer import Input

CHUNK = 512
"""Inputs tokenised at a time, and put into batches together."""

AHEAD = 1
"""Chunks tokenised ahead, each in a thread of its own. More brought nothing on 16 cores (one H100's host)."""

T = TypeVar("T")
R = TypeVar("R")
Encode = Callable[[Sequence[Input], Sequence[int]], list[Row]]
"""Inputs, and the positions by which errors name them, to rows."""


class Batch(NamedTuple):
    """Rows that run together, and their places in the whole list, int64 [n]."""

    positions: npt.NDArray[np.int64]
    rows: list[Row]


class Pipeline:
    """One engine and the threads around it. Safe to use from several threads."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._tokenizing = ThreadPoolExecutor(AHEAD, "bei-tokenize")
        self._lanes = ThreadPoolExecutor(executor.concurrency, "bei-engine")

    def close(self) -> None:
        """Wait for what runs."""
        self._tokenizing.shutdown()
        self._lanes.shutdown()

    def batches(self, inputs: Sequence[Input], encode: Encode, budget: Budget) -> Iterator[Batch]:
        """Long inputs first, each chunk tokenised before it is asked for. Raises what ``encode`` does."""

        def rows(positions: npt.NDArray[np.int64]) -> list[Row]:
            names = positions.tolist()
            return encode([inputs[name] for name in names], names)

        order = np.argsort([-_size(item) for item in inputs], kind="stable")
        chunks = [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]
        results = map(rows, chunks) if len(chunks) == 1 else ahead(self._tokenizing, rows, chunks, AHEAD)
        for chunk, made in zip(chunks, results, strict=True):
            for batch in planned(made, budget):
                yield Batch(chunk[batch.positions], batch.rows)

    def run(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Sequence[Output] | Output]]:
        """Each batch and its outputs, in order, as many in flight as the engine takes and one at its door. Raises
        EngineError."""
        several = iter(batches)
        begin = list(islice(several, 2))

        def outputs(batch: Batch) -> tuple[Batch, Sequence[Output] | Output]:
            return batch, self._executor.run(batch.rows)

        if len(begin) < 2 or self._executor.concurrency == 1:
            return map(outputs, chain(begin, several))
        return ahead(self._lanes, outputs, chain(begin, several), self._executor.concurrency)


def planned(rows: Sequence[Row], budget: Budget) -> Iterator[Batch]:
    """The rows in batches, long ones first."""
    for batch in plan([len(row.ids) for row in rows], budget):
        yield Batch(np.array(batch), [rows[index] for index in batch])


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], count: int
) -> Iterator[R]:
    """``function`` of each item, in order, ``count`` of them begun before they are asked for."""
    begun: deque[Future[R]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) > count:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()


def _size(item: object) -> int:
    """A guess at an input's tokens, times four."""
    if isinstance(item, str):
        return len(item)
    if isinstance(item, tuple | list) and item and isinstance(item[0], str):
        return sum(len(part) for part in item if isinstance(part, str))
    return 4 * len(item) if hasattr(item, "__len__") else 0
