"""Interpolation between measured batches."""

import pytest
from tests.runtime.capacity.models import engine, linear

from bei.runtime.capacity.curve import RESTED, Point, Times, effective_length, grid, shape_of


def test_measured_sizes_come_back_as_they_are() -> None:
    curve = engine(lambda rows, length: 0.001 * rows + 1e-5 * rows * length + 1e-8 * rows * length**2)
    for point in curve.points:
        rows = point.tokens // int(point.length)
        assert Times(curve).seconds([int(point.length)] * rows) == pytest.approx((point.seconds,))


@pytest.mark.parametrize("lengths", [[20], [24, 24, 24], [100] * 5, [128] * 8, [90, 3]])
def test_what_grows_with_the_tokens_alone_is_exact_in_between(lengths: list[int]) -> None:
    seconds = linear(0.002, 1e-5)
    found = Times(engine(seconds)).seconds(lengths)
    assert found == pytest.approx((seconds(len(lengths), max(lengths)),))


def test_beyond_the_largest_batch_it_goes_straight_on() -> None:
    seconds = linear(0.002, 1e-5)
    assert Times(engine(seconds)).seconds([128] * 16) == pytest.approx((seconds(16, 128),))


def test_a_text_between_two_lengths_takes_a_time_between_theirs() -> None:
    curve = engine(lambda rows, length: 1e-6 * rows * length**2)
    low, found, high = (Times(curve).seconds([length])[0] for length in (64, 96, 128))
    assert low < found < high


def test_padding_counts() -> None:
    padded, packed = engine(linear(0, 1e-5)), engine(linear(0, 1e-5), layout="packed")
    assert Times(padded).seconds([128, 2]) == pytest.approx((2 * 128e-5,))
    assert Times(packed).seconds([128, 2]) == pytest.approx((130e-5,))


def test_times_with_more_calls_in_flight() -> None:
    curve = engine(linear(0.001, 0), concurrency=3, crowded=2.0)
    assert Times(curve).seconds([8]) == pytest.approx((0.001, 0.0015, 0.002))


def test_a_rested_engine_is_slower_by_what_was_measured() -> None:
    hot = engine(linear(0.002, 1e-5)).points
    rested = tuple(Point(RESTED, one.length, one.tokens, one.seconds + 0.001) for one in hot)
    times = Times(engine(linear(0, 0), points=(*rested, *hot)))
    for lengths in ([8], [64, 64], [20]):
        (alone,) = times.seconds(lengths)
        assert times.rested(lengths) == pytest.approx((alone + 0.001) / alone)


def test_a_rest_is_never_a_gain() -> None:
    hot = engine(linear(0.002, 1e-5)).points
    luckier = tuple(Point(RESTED, one.length, one.tokens, one.seconds / 2) for one in hot)
    assert Times(engine(linear(0, 0), points=(*luckier, *hot))).rested([32]) == 1
    assert Times(engine(linear(0.002, 1e-5))).rested([32]) == 1


def test_three_measured_sizes_of_a_packed_engine_make_a_curve() -> None:
    points = (Point(1, 128.0, 16384, 0.007), Point(1, 167.0, 16005, 0.0069), Point(1, 32.0, 32, 0.0004))
    times = Times(engine(linear(0, 0), layout="packed", points=points))
    assert times.seconds([32])[0] == pytest.approx(0.0004)
    assert times.seconds([128] * 128)[0] == pytest.approx(0.007)
    assert times.seconds([5])[0] == pytest.approx(0.0004)
    assert times.seconds([32] * 32)[0] == pytest.approx(
        0.0004 + 0.0066 * (1024 - 32) / (16384 - 32), rel=0.01
    )
    assert times.seconds([60] * 16)[0] < 0.001
    assert 0.0004 < times.seconds([128] * 8)[0] < 0.001
    assert times.seconds([512])[0] < times.seconds([512] * 4)[0]


def test_attention_sees_the_length_of_the_average_token() -> None:
    assert effective_length([10, 10]) == 10
    assert effective_length([30, 10]) == 25


def test_the_grid_has_every_length_alone_and_stays_within_the_budget() -> None:
    found = list(grid(100, 256, 8))
    assert {length for _, length in found} == {8, 16, 32, 64, 100}
    assert all(rows == 1 or (rows <= 8 and rows * length <= 256) for rows, length in found)
    assert (8, 8) in found and (2, 100) in found and (1, 100) in found


def test_encoders_of_one_shape_have_one_curve() -> None:
    plain = {"window": None, "rope": None}
    encoder = {"dim": 384, "layers": [plain] * 6, "norm_eps": 1e-12}
    assert shape_of(encoder) == shape_of(encoder | {"norm_eps": 1e-5})
    assert shape_of(encoder) != shape_of(encoder | {"layers": [plain] * 12})
    assert shape_of(encoder) != shape_of(encoder | {"layers": [{"window": 64, "rope": None}] * 6})
