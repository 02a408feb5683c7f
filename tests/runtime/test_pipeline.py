"""Lists of inputs through one engine: every row once, in few threads, no more begun than is needed soon."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from bei.errors import EngineError, InputError
from bei.runtime import pipeline
from bei.runtime.batching import Budget
from bei.runtime.executor import Output, Row
from bei.runtime.pipeline import AHEAD, Batch, Pipeline, ahead, planned
from bei.runtime.tokenizer import Input

BUDGET = Budget(max_tokens=12, max_rows=3, padded=False)


class Engine:
    """Answers each row with its first id and its length; remembers who called, and how many were inside at once."""

    target = "fake"

    def __init__(self, concurrency: int, together: int = 1) -> None:
        self.concurrency = concurrency
        self.threads: list[str] = []
        self.gate = threading.Barrier(together)

    def run(self, rows: list[Row]) -> Output:
        self.threads.append(threading.current_thread().name)
        self.gate.wait(30)
        if any(row.ids[0] < 0 for row in rows):
            raise EngineError("fake: no")
        return np.array([[row.ids[0], len(row.ids)] for row in rows], np.float32)

    def describe(self) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


def row(value: int, length: int) -> Row:
    return Row(ids=np.full(length, value, np.int32), types=np.zeros(length, np.int32))


def encode(inputs: Sequence[Input], positions: Sequence[int]) -> list[Row]:
    """A token a character, each of them the input's own position."""
    return [row(position, len(item)) for item, position in zip(inputs, positions, strict=True)]


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_every_input_comes_out_at_its_place(
    concurrency: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "CHUNK", 8)
    inputs = ["x" * (1 + 7 * n % 11) for n in range(count)]
    with closing(Pipeline(Engine(concurrency))) as made:
        found = {}
        for batch, outputs in made.run(made.batches(inputs, encode, BUDGET)):
            assert sum(len(one.ids) for one in batch.rows) <= BUDGET.max_tokens
            for position, output in zip(batch.positions.tolist(), outputs, strict=True):
                assert position not in found
                found[position] = output.tolist()
    assert found == {n: [n, len(text)] for n, text in enumerate(inputs)}


def test_long_inputs_come_first_and_equal_ones_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "CHUNK", 1)
    inputs: list[Input] = ["ab", "abcd", ("ab", "cd"), [1, 2], "a"]
    with closing(Pipeline(Engine(1))) as made:
        assert [int(batch.positions[0]) for batch in made.batches(inputs, encode, BUDGET)] == [3, 1, 2, 0, 4]


def test_an_engine_that_takes_two_batches_gets_two_at_a_time() -> None:
    engine = Engine(2, together=2)
    with closing(Pipeline(engine)) as made:
        batches = list(planned([row(1, 10)] * 4, BUDGET))
        assert len(list(made.run(batches))) == 4
    assert {name.rsplit("_")[0] for name in engine.threads} == {"bei-engine"}


@pytest.mark.parametrize(("concurrency", "count"), [(2, 1), (1, 4)])
def test_without_anything_to_overlap_no_thread_is_asked(concurrency: int, count: int) -> None:
    engine = Engine(concurrency)
    with closing(Pipeline(engine)) as made:
        assert len(list(made.run(planned([row(1, 10)] * count, BUDGET)))) == count
    assert set(engine.threads) == {threading.current_thread().name}


def test_texts_are_not_tokenised_long_before_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "CHUNK", 1)
    asked: list[int] = []

    def counted(inputs: Sequence[Input], positions: Sequence[int]) -> list[Row]:
        asked.extend(positions)
        return encode(inputs, positions)

    with closing(Pipeline(Engine(1))) as made:
        batches = made.batches(["a"] * 50, counted, BUDGET)
        for taken in range(1, 51):
            next(batches)
            assert taken <= len(asked) <= min(50, taken + AHEAD)


def test_what_fails_is_raised_at_its_turn_and_ends_the_rest() -> None:
    with closing(Pipeline(Engine(2))) as made:
        batches = [Batch(np.array([n]), [row(-1 if n == 3 else n, 1)]) for n in range(50)]
        seen = []
        with pytest.raises(EngineError, match="fake: no"):
            for batch, _ in made.run(batches):
                seen.extend(batch.positions.tolist())
        assert seen == [0, 1, 2]


def test_an_input_that_is_refused_ends_the_work_on_those_before() -> None:
    def refusing() -> Iterator[int]:
        yield from range(5)
        raise InputError("input 5: no")

    done: list[int] = []
    with ThreadPoolExecutor(1) as pool, pytest.raises(InputError, match="input 5"):
        done.extend(ahead(pool, lambda number: number, refusing(), 2))
    assert done == [0, 1, 2]
