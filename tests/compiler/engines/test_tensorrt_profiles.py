"""Profiles: every length has one, none is larger than the budget, and no length loses more than the step."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bei.compiler.engines.tensorrt_profiles import MOST, shape_ranges
from bei.errors import EngineError

limits = st.tuples(st.integers(1, 512), st.integers(1, 8192), st.integers(1, 1 << 17))
steps = st.sampled_from([2.0, 4.0, 6.0])


@given(limits, steps)
def test_profiles_reach_every_length_and_never_pass_the_budget(
    limit: tuple[int, int, int], step: float
) -> None:
    max_batch, max_length, budget = limit
    assume(budget >= max_length)
    built = shape_ranges(max_batch, max_length, budget, step)
    assert 1 <= len(built) <= MOST
    assert built[-1].sequence.high == max_length
    for profile in built:
        assert profile.batch.high <= max_batch
        assert profile.batch.high * profile.sequence.high <= budget
        assert profile.tokens.high == profile.batch.high * profile.sequence.high
        for one in (profile.batch, profile.sequence, profile.tokens):
            assert 1 == one.low <= one.tuned <= one.high


@given(st.integers(1, 8192), steps)
def test_a_batch_of_any_length_holds_its_share(length: int, step: float) -> None:
    """Where `MOST` profiles are enough; one row and one step of alignment are lost to rounding."""
    max_batch, max_length, budget = 256, 8192, 131072
    built = shape_ranges(max_batch, max_length, budget, max(step, 16 ** (1 / MOST)))
    rows = max(p.batch.high for p in built if length <= p.sequence.high)
    allowed = min(max_batch, budget // length)
    assert rows + 1 >= allowed / (step * 1.05)


def test_the_usual_limits() -> None:
    def corners(rows: int, length: int, tokens: int, step: float = 4) -> list[tuple[int, int]]:
        return [(p.batch.high, p.sequence.high) for p in shape_ranges(rows, length, tokens, step)]

    assert corners(256, 512, 16384) == [(89, 184), (32, 512)]
    assert corners(256, 8192, 16384) == [(75, 216), (22, 728), (6, 2440), (2, 8192)]
    assert corners(256, 8192, 16384, step=6) == [(49, 328), (10, 1632), (2, 8192)]
    assert corners(32, 512, 16384) == [(32, 512)]
    assert corners(8, 64, 256) == [(4, 64)]
    assert corners(4, 64, 1 << 20) == [(4, 64)]


def test_shapes_follow_the_inputs_axes() -> None:
    (profile,) = shape_ranges(8, 64, 512, 4)
    assert profile.shapes("input_ids", ("batch", "sequence")) == ((1, 1), (8, 64), (8, 64))
    assert profile.shapes("unpad_index", ("tokens",)) == ((1,), (512,), (512,))
    with pytest.raises(EngineError, match=r"graph input x: axes \('heads',\)"):
        profile.shapes("x", ("heads",))


@pytest.mark.parametrize(
    ("limit", "says"),
    [((0, 512, 1024), "at least 1"), ((1, 512, 511), "511 tokens a batch are less than one text of 512")],
)
def test_limits_that_cannot_be(limit: tuple[int, int, int], says: str) -> None:
    with pytest.raises(EngineError, match=says):
        shape_ranges(*limit, 4)
