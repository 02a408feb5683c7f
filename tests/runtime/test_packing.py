"""Padded and packed inputs say the same thing, and padding is told apart from tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bei.errors import InputError
from bei.runtime.executor import Row
from bei.runtime.packing import pack, pad

PAD = 7


def row(ids: list[int]) -> Row:
    return Row(
        ids=np.array(ids, np.int32),
        types=np.array([i % 2 for i in ids], np.int32),
        prompt_tokens=len(ids) // 2,
    )


rows = st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9).map(row), min_size=1, max_size=6)


@given(rows)
def test_unpad_after_pad_gives_the_tokens_back(batch: list[Row]) -> None:
    packed = pack(batch)
    tokens = packed["input_ids"]
    padded = tokens[packed["pad_index"]]
    np.testing.assert_array_equal(padded.reshape(-1)[packed["unpad_index"]], tokens)


@given(rows)
def test_packed_is_padded_without_the_padding(batch: list[Row]) -> None:
    packed, padded = pack(batch), pad(batch, PAD, np.int64)
    mask = padded["attention_mask"].astype(bool)
    np.testing.assert_array_equal(packed["attention_mask"], padded["attention_mask"])
    np.testing.assert_array_equal(packed["prompt_length"], padded["prompt_length"])
    for name in ("input_ids", "token_type_ids"):
        np.testing.assert_array_equal(packed[name], padded[name][mask])


@given(rows)
def test_padding_is_masked_and_on_the_right(batch: list[Row]) -> None:
    padded = pad(batch, PAD, np.int32)
    for index, one in enumerate(batch):
        n = one.ids.size
        np.testing.assert_array_equal(padded["input_ids"][index, :n], one.ids)
        np.testing.assert_array_equal(padded["token_type_ids"][index, :n], one.types)
        assert (padded["input_ids"][index, n:] == PAD).all()
        assert (padded["token_type_ids"][index, n:] == 0).all()
        assert padded["attention_mask"][index].tolist() == [1] * n + [0] * (mask_width(batch) - n)


@given(rows)
def test_every_slot_points_at_a_token(batch: list[Row]) -> None:
    """Gather reads what padding slots point to, so they too must stay in range; they point to token 0."""
    packed = pack(batch)
    mask = packed["attention_mask"].astype(bool)
    assert packed["pad_index"].shape == (len(batch), mask_width(batch))
    assert (packed["pad_index"][~mask] == 0).all()
    assert sorted(packed["pad_index"][mask]) == list(range(packed["input_ids"].size))


@given(rows, st.sampled_from([np.int32, np.int64]))
def test_dtypes(batch: list[Row], dtype: type[np.signedinteger]) -> None:
    assert {a.dtype for a in pad(batch, PAD, dtype).values()} == {np.dtype(dtype)}
    assert {a.dtype for a in pack(batch, dtype).values()} == {np.dtype(dtype)}


def mask_width(batch: list[Row]) -> int:
    return max(one.ids.size for one in batch)


def test_a_row_without_tokens_is_refused() -> None:
    for make in (pack, lambda batch: pad(batch, PAD, np.int64)):
        with pytest.raises(InputError, match="row 1: no tokens"):
            make([row([1, 2]), row([])])
        with pytest.raises(InputError, match="no rows"):
            make([])


def test_padding_to_a_multiple_stops_at_the_longest_text() -> None:
    rows = [Row(ids=np.arange(n, dtype=np.int32), types=np.zeros(n, np.int32)) for n in (3, 9)]
    assert pad(rows, 0, np.int32, multiple=8)["input_ids"].shape == (2, 16)
    assert pad(rows, 0, np.int32, multiple=8, longest=12)["input_ids"].shape == (2, 12)
    assert pad(rows, 0, np.int32, multiple=8, longest=5)["input_ids"].shape == (2, 9)
