"""Does a row's result depend on its neighbours or on its padding? Asked of an engine, with rows chosen for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bei.compiler.parity.compare import difference
from bei.manifest import Limits, Task
from bei.runtime.executor import Row

F32 = npt.NDArray[np.float32]
Run = Callable[[list[Row]], Sequence[F32]]

ROWS = 8
TOKENS = 2048
"""Rows, and padded tokens, of one probing call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probed:
    """Worst differences from the row run alone, None where there was one row only, and rows that were not finite."""

    batch_difference: float | None
    padding_difference: float | None
    non_finite: int


def probe(task: Task, rows: Sequence[Row], run: Run, limits: Limits) -> Probed:
    """Run rows alone, beside others of their length, and short ones padded to the longest that fits."""
    lengths = [int(row.ids.size) for row in rows]
    level, mixed = choose(lengths, limits)
    alone = {i: run([rows[i]])[0] for i in {*level, *mixed}}
    together = {
        which: run([rows[i] for i in chosen]) for which, chosen in (("level", level), ("mixed", mixed))
    }
    results = [*alone.values(), *together["level"], *together["mixed"]]
    return Probed(
        batch_difference=_worst(task, alone, level, together["level"]),
        padding_difference=_worst(task, alone, mixed, together["mixed"]),
        non_finite=sum(not np.isfinite(result).all() for result in results),
    )


def choose(lengths: Sequence[int], limits: Limits) -> tuple[list[int], list[int]]:
    """Indices of two calls within the engine's limits: rows about as long as the median one; and rows spread from the
    shortest to the longest, the longest itself included whenever two such rows fit into one call."""
    ordered = sorted(range(len(lengths)), key=lambda i: lengths[i])
    middle = len(ordered) // 2
    fit = _rows_of(lengths[ordered[middle]], limits)
    start = max(0, min(middle - fit // 2, len(ordered) - fit))
    level = ordered[start : start + fit]
    while level and lengths[level[-1]] * len(level) > limits.max_batch_tokens:
        level.pop()

    usable = [i for i in ordered if 2 * lengths[i] <= limits.max_batch_tokens] or ordered[:1]
    count = min(_rows_of(lengths[usable[-1]], limits), len(usable))
    steps = np.linspace(0, len(usable) - 1, count).round().astype(int)
    return level, [usable[step] for step in dict.fromkeys(steps.tolist())]


def _rows_of(length: int, limits: Limits) -> int:
    """How many rows of this length one probing call takes: at least 1, 2 where the engine allows it."""
    allowed = min(limits.max_batch, max(1, limits.max_batch_tokens // length))
    return min(allowed, ROWS, max(2, TOKENS // length))


def _worst(task: Task, alone: dict[int, F32], chosen: Sequence[int], together: Sequence[F32]) -> float | None:
    if len(chosen) < 2:
        return None
    pairs = [(result, alone[i]) for i, result in zip(chosen, together, strict=True)]
    finite = [(a, b) for a, b in pairs if np.isfinite(a).all() and np.isfinite(b).all()]
    return max((difference(task, a, b) for a, b in finite), default=None)
