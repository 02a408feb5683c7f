"""What an engine runs before it is called ready, so that no request pays for memory, profiles, graphs or kernels."""

import time
from collections.abc import Sequence

import numpy as np

from bei.runtime.batching import Budget
from bei.runtime.executor import Executor, Row
from bei.runtime.outputs import non_finite, not_finite

SHORTEST = 16
STEP = 4
"""Between the lengths of full batches; lengths of single rows double."""


def shape_classes(budget: Budget, max_length: int, *, gpu: bool) -> list[list[int]]:
    """Batches as the lengths of their rows, those of the most tokens first, since buffers only grow.

    A GPU engine prepares itself for sizes (TensorRT's profiles, CUDA graphs), so it gets full batches of long to short
    rows, and single rows. A CPU engine only has buffers: the fullest batch and a short row touch all of it.
    """
    longest = max(1, min(max_length, budget.max_tokens))

    def full(length: int) -> list[int]:
        return [length] * budget.rows(length)

    if not gpu:
        return [full(longest), [min(SHORTEST, longest)]]
    batches = [full(length) for length in _down(longest, STEP)]
    batches += [[length] for length in _down(longest, 2)]
    return sorted(batches, key=sum, reverse=True)


def warm_up(executor: Executor, row: Row, shapes: Sequence[Sequence[int]]) -> list[tuple[int, float]]:
    """Run ``row``, repeated to every shape, on an engine: tokens and seconds of each.

    Raises EngineError, also for results that are not finite.
    """
    took = []
    for lengths in shapes:
        began = time.perf_counter()
        if bad := non_finite(executor.run([_stretched(row, length) for length in lengths])):
            raise not_finite(bad)
        took.append((sum(lengths), time.perf_counter() - began))
    return took


def _down(longest: int, factor: int) -> list[int]:
    lengths = [longest]
    while lengths[-1] // factor >= SHORTEST:
        lengths.append(lengths[-1] // factor)
    return lengths if lengths[-1] <= SHORTEST else [*lengths, SHORTEST]


def _stretched(row: Row, length: int) -> Row:
    return Row(ids=np.resize(row.ids, length), types=np.resize(row.types, length))
