"""Rows to the packed inputs of a launch plan."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bei.cuda_plan import INPUTS, Operand, Plan, Schedule
from bei.runtime.cuda.batch import assemble, rounded, work_items
from bei.runtime.executor import Row

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=40)


def plan(position_pad: int | None = None) -> Plan:
    output = Operand(place="arena", name="b0", rows="rows", dtype="f32", width=4, stride=4)
    return Plan(
        version=1,
        sm=90,
        triton="",
        stream="f16",
        gelu="erf",
        schedules=(Schedule(least=0, steps=(), buffers={}, output=output),),
        functions={},
        arena={},
        weights={},
        conversions={},
        constants=b"",
        inputs=tuple(INPUTS),
        query_block=64,
        position_pad=position_pad,
    )


def rows_of(lengths: list[int]) -> list[Row]:
    rng = np.random.default_rng(0)
    return [
        Row(ids=rng.integers(0, 5, n).astype(np.int32), types=np.full(n, i % 2, np.int32), prompt_tokens=i)
        for i, n in enumerate(lengths)
    ]


def inputs(rows: list[Row], position_pad: int | None = None) -> dict[str, Any]:
    batch = assemble(plan(position_pad), rows)
    found = {}
    for name, at in batch.offsets.items():
        symbol, columns = INPUTS[name]
        found[name] = batch.data[at : at + batch.sizes.rounded[symbol] * columns]
    return found


@given(LENGTHS)
def test_every_input_says_where_a_token_belongs(lengths: list[int]) -> None:
    rows = rows_of(lengths)
    found, tokens = inputs(rows), sum(lengths)
    np.testing.assert_array_equal(found["ids"][:tokens], np.concatenate([row.ids for row in rows]))
    np.testing.assert_array_equal(found["types"][:tokens], np.concatenate([row.types for row in rows]))
    np.testing.assert_array_equal(found["lengths"][: len(rows)], lengths)
    np.testing.assert_array_equal(found["prompts"][: len(rows)], range(len(rows)))
    for row, length in enumerate(lengths):
        start = found["starts"][row]
        np.testing.assert_array_equal(found["owner"][start : start + length], row)
        np.testing.assert_array_equal(found["index"][start : start + length], range(length))
    np.testing.assert_array_equal(found["positions"], found["index"])
    for name, (symbol, columns) in INPUTS.items():
        real = {"tokens": tokens, "rows": len(rows)}.get(symbol)
        if real is not None:
            assert not found[name][real * columns :].any(), f"{name} has something in its unused places"


@given(LENGTHS)
def test_work_covers_every_query_once_longest_text_first(lengths: list[int]) -> None:
    sizes = np.array(lengths, np.int32)
    starts = (np.cumsum(sizes) - sizes).astype(np.int32)
    items = work_items(starts, sizes, 64)
    covered = [(s, q) for s, n, first, _ in items for q in range(first, min(first + 64, n))]
    assert len(covered) == len(set(covered)) == sum(lengths)
    assert {s for s, _ in covered} == set(starts.tolist())
    assert (np.diff(items[:, 1]) <= 0).all()


def test_positions_count_tokens_that_are_not_padding() -> None:
    ids = np.array([5, 1, 7, 1, 9], np.int32)
    row = Row(ids=ids, types=np.zeros(5, np.int32))
    found = inputs([row, row], position_pad=1)
    np.testing.assert_array_equal(found["positions"][:10], [2, 1, 3, 1, 4] * 2)


@given(st.integers(1, 200_000))
def test_rounding_wastes_little_and_needs_few_sizes(n: int) -> None:
    up = rounded(n, 16, 32)
    assert n <= up <= n + max(15, n / 16) and up % 16 == 0
    assert rounded(up, 16, 32) == up
