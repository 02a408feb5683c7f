"""Rows to the packed int32 inputs of a launch plan, in sizes rounded up so that few CUDA graphs serve every batch.

T tokens of all rows in a line, B rows, W work items (blocks of queries of one text).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bei.cuda_plan import INPUTS, Plan
from bei.errors import InputError
from bei.runtime.executor import Row

Ints = npt.NDArray[np.int32]
ALIGNMENT = 32
"""int32 values: every input begins at a multiple of 128 bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Real tokens and rows; ``rounded`` is what the engine computes, by symbol."""

    tokens: int
    rows: int
    rounded: Mapping[str, int]

    @property
    def key(self) -> tuple[int, int, int]:
        """Batches with one key share a CUDA graph."""
        return self.rounded["tokens"], self.rounded["rows"], self.rounded["work"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """``data`` holds every input at ``offsets`` (in int32 values); ``lengths`` of the rows as given."""

    sizes: Sizes
    data: Ints
    offsets: Mapping[str, int]
    lengths: Ints


def rounded(n: int, step: int, steps_an_octave: int) -> int:
    """n rounded up to a multiple of ``step``, more coarsely as n grows: at most 1/steps_an_octave too many."""
    coarse = max(step, (1 << (n - 1).bit_length() >> 1) // steps_an_octave)
    return -(-n // coarse) * coarse


def layout(inputs: Sequence[str], sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Where each input begins, and the whole length, in int32 values."""
    offsets, at = {}, 0
    for name in inputs:
        symbol, columns = INPUTS[name]
        offsets[name] = at
        at += -(-sizes[symbol] * columns // ALIGNMENT) * ALIGNMENT
    return offsets, at


def assemble(plan: Plan, rows: Sequence[Row]) -> Batch:
    """The plan's inputs for these rows; unused places are 0. Raises InputError for no rows or an empty one."""
    if not rows:
        raise InputError("batch: no rows. Pass at least one.")
    lengths = np.array([row.ids.size for row in rows], np.int32)
    if not lengths.all():
        raise InputError(f"row {int(lengths.argmin())}: no tokens (need at least 1). Leave the text out.")
    ends = np.cumsum(lengths)
    starts = (ends - lengths).astype(np.int32)
    work = work_items(starts, lengths, plan.query_block)
    tokens = int(ends[-1])
    numbers = {
        "tokens": rounded(tokens, 16, 32),
        "rows": rounded(len(rows), 16, 1),
        "work": rounded(len(work), 1, 8),
        "one": 1,
    }
    if plan.slots is not None:
        numbers["slots"] = plan.slots.of(numbers)
    sizes = Sizes(tokens=tokens, rows=len(rows), rounded=numbers)
    values = _values(plan, rows, starts, lengths, work)
    offsets, size = layout(plan.inputs, sizes.rounded)
    data = np.zeros(size, np.int32)
    for name, offset in offsets.items():
        data[offset : offset + values[name].size] = values[name]
    return Batch(sizes=sizes, data=data, offsets=offsets, lengths=lengths)


def _values(plan: Plan, rows: Sequence[Row], starts: Ints, lengths: Ints, work: Ints) -> dict[str, Ints]:
    """What the plan reads, flat."""
    owner = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)
    index = np.arange(len(owner), dtype=np.int32) - starts[owner]
    ids = np.concatenate([row.ids for row in rows])
    values = {"ids": ids, "index": index, "owner": owner, "starts": starts, "lengths": lengths}
    values["work"] = work.reshape(-1)
    if "types" in plan.inputs:
        values["types"] = np.concatenate([row.types for row in rows])
    if "positions" in plan.inputs:
        values["positions"] = _positions(ids, index, starts, lengths, plan.position_pad)
    if "prompts" in plan.inputs:
        values["prompts"] = np.array([row.prompt_tokens for row in rows], np.int32)
    return values


def _positions(ids: Ints, index: Ints, starts: Ints, lengths: Ints, pad: int | None) -> Ints:
    """Rows of the position table: a token's index, or (RoBERTa) pad + its count among its text's tokens that are not
    pad; a pad token has row pad."""
    if pad is None:
        return index
    real = ids != pad
    counted = np.cumsum(real)
    before = np.concatenate(([0], counted))[starts]
    positions: Ints = ((counted - np.repeat(before, lengths)) * real + pad).astype(np.int32)
    return positions


def work_items(starts: Ints, lengths: Ints, block: int) -> Ints:
    """[W, 4]: (first token, length, first query, 0), the longest texts first so that none is left for the end."""
    order = np.argsort(-lengths, kind="stable")
    starts, lengths = starts[order], lengths[order]
    blocks = -(-lengths // block)
    text = np.repeat(np.arange(len(lengths)), blocks)
    number = np.arange(len(text)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    items = np.zeros((len(text), 4), np.int32)
    items[:, 0], items[:, 1], items[:, 2] = starts[text], lengths[text], number * block
    return items
