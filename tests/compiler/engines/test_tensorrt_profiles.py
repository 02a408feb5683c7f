"""Profiles: every batch within the limits has one, and none is larger than it must be."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bei.compiler.engines.tensorrt_profiles import profiles
from bei.errors import EngineError

limits = st.tuples(st.integers(1, 512), st.integers(1, 8192), st.integers(1, 1 << 17))


@given(limits, st.integers(1, 4), st.data())
def test_every_batch_within_the_limits_fits_a_profile(
    limit: tuple[int, int, int], most: int, data: st.DataObject
) -> None:
    max_batch, max_length, budget = limit
    assume(budget >= max_length)
    length = data.draw(st.integers(1, max_length))
    rows = data.draw(st.integers(1, max(1, min(max_batch, budget // length))))
    tokens = data.draw(
        st.integers(rows + length - 1, rows * length)
    )  # one row is `length` long, none is empty
    built = profiles(max_batch, max_length, budget, most)
    assert 1 <= len(built) <= most
    assert any(rows <= p.batch.high and length <= p.sequence.high and tokens <= p.tokens.high for p in built)


@given(limits, st.integers(1, 4))
def test_ranges_are_ordered_and_within_the_limits(limit: tuple[int, int, int], most: int) -> None:
    max_batch, max_length, budget = limit
    assume(budget >= max_length)
    for profile in profiles(max_batch, max_length, budget, most):
        for one in (profile.batch, profile.sequence, profile.tokens):
            assert 1 == one.low <= one.tuned <= one.high
        assert profile.batch.high <= max_batch
        assert profile.sequence.high <= max_length
        assert profile.tokens.high <= budget


def test_several_profiles_give_long_texts_fewer_rows() -> None:
    built = profiles(256, 512, 16384, 4)
    assert [(p.sequence.high, p.batch.high) for p in built] == [(32, 256), (128, 256), (512, 127)]
    (one,) = profiles(256, 512, 16384, 1)
    assert (one.sequence.high, one.batch.high) == (512, 256)


def test_shapes_follow_the_inputs_axes() -> None:
    (profile,) = profiles(8, 64, 256, 1)
    assert profile.shapes("input_ids", ("batch", "sequence")) == ((1, 1), (4, 64), (8, 64))
    assert profile.shapes("unpad_index", ("tokens",)) == ((1,), (256,), (256,))
    with pytest.raises(EngineError, match=r"graph input x: axes \('heads',\)"):
        profile.shapes("x", ("heads",))


@pytest.mark.parametrize(
    ("limit", "says"),
    [((0, 512, 1024), "at least 1"), ((1, 512, 511), "511 tokens a batch are less than one text of 512")],
)
def test_limits_that_cannot_be(limit: tuple[int, int, int], says: str) -> None:
    with pytest.raises(EngineError, match=says):
        profiles(*limit, 1)
