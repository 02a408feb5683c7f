"""Every measure against a slow, obvious version of itself."""

import math
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bei.compiler.parity import measures

F64 = npt.NDArray[np.floating]

NUMBERS = st.floats(-100, 100, allow_nan=False, width=32)
SERIES = st.integers(2, 12).flatmap(lambda n: arrays(np.float32, n, elements=NUMBERS))
TIED = st.integers(2, 12).flatmap(
    lambda n: arrays(np.float32, n, elements=st.sampled_from([0.0, 1.0, 2.0, 3.0]))
)
ROWS = st.tuples(st.integers(2, 9), st.integers(1, 5)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=NUMBERS)
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def slow_cosine(a: F64, b: F64) -> float:
    dot = math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    lengths = math.sqrt(math.fsum(float(x) ** 2 for x in a)) * math.sqrt(math.fsum(float(x) ** 2 for x in b))
    return dot / lengths


def slow_ranks(x: F64) -> list[float]:
    """How many are smaller, plus half of the others that are equal."""
    return [sum(v < u for v in x) + (sum(v == u for v in x) - 1) / 2 for u in x]


def slow_pearson(a: list[float], b: list[float]) -> float:
    ma, mb = sum(a) / len(a), sum(b) / len(b)
    cov = sum((x - ma) * (y - mb) for x, y in zip(a, b, strict=True))
    return cov / math.sqrt(sum((x - ma) ** 2 for x in a) * sum((y - mb) ** 2 for y in b))


@settings(max_examples=50)
@given(ROWS, st.integers(0, 99))
def test_cosine_distance(a: F64, seed: int) -> None:
    a = a + np.where(np.abs(a).sum(axis=1, keepdims=True) < 1e-3, np.float32(1), np.float32(0))
    b = rng(seed).standard_normal(a.shape)
    got = measures.cosine_distance(a, b)
    want = [1 - slow_cosine(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_cosine_distance_keeps_digits_that_one_minus_cosine_loses() -> None:
    a = np.array([[1.0, 0.0]])
    b = np.array([[1.0, 1e-10]])
    assert measures.cosine_distance(a, b)[0] == pytest.approx(0.5e-20, rel=1e-6)


def test_cosine_distance_of_zero_vectors() -> None:
    zero, one = np.zeros((1, 3)), np.ones((1, 3))
    assert measures.cosine_distance(zero, zero)[0] == 0
    assert measures.cosine_distance(zero, one)[0] == 1
    assert measures.cosine_distance(one, zero)[0] == 1


def test_relative_error_sees_a_wrong_scale_that_cosine_does_not() -> None:
    x = rng().standard_normal((4, 8))
    np.testing.assert_allclose(measures.relative_error(1.5 * x, x), 0.5)
    np.testing.assert_allclose(measures.cosine_distance(1.5 * x, x), 0, atol=1e-15)


def test_scaled_difference() -> None:
    assert measures.scaled_difference(np.array([0.1, 0.2]), np.array([0.1, 0.25])) == pytest.approx(0.05)
    assert measures.scaled_difference(np.array([10.0, 5.0]), np.array([10.0, 4.0])) == pytest.approx(0.1)
    assert measures.scaled_difference(np.zeros(0), np.zeros(0)) == 0


@settings(max_examples=40)
@given(ROWS, st.integers(1, 4), st.integers(0, 99))
def test_neighbour_overlap(theirs: F64, k: int, seed: int) -> None:
    theirs = theirs + rng(seed).standard_normal(theirs.shape)
    ours = theirs + 0.3 * rng(seed + 1).standard_normal(theirs.shape)
    n = len(theirs)
    k = min(k, n - 1)
    want = []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        reference = {j: slow_cosine(theirs[i], theirs[j]) for j in others}
        mine = sorted(others, key=lambda j: -slow_cosine(ours[i], ours[j]))[:k]
        bar = sorted(reference.values(), reverse=True)[k - 1]
        want.append(sum(reference[j] >= bar - 1e-6 for j in mine) / k)
    got = measures.neighbour_overlap(ours, theirs, k)
    assert got is not None
    if theirs.shape[1] > 1:  # in one dimension all similarities are ±1 and the choice among them is free
        np.testing.assert_allclose(got, want)


def test_neighbour_overlap_counts_equal_texts_as_equal() -> None:
    """Two copies of a text may swap places; a stranger may not."""
    theirs = np.array([[1.0, 0], [0.9, 0.1], [0.9, 0.1], [0, 1.0]])
    ours = theirs.copy()
    ours[2] += 1e-9
    overlap = measures.neighbour_overlap(ours, theirs, k=1)
    assert overlap is not None
    assert overlap.tolist() == [1, 1, 1, 1]
    ours[3] = [1.0, 0]
    assert measures.neighbour_overlap(ours, theirs, k=1)[0] == 0  # type: ignore[index]


def test_neighbours_and_ranks_need_enough_texts() -> None:
    one, two = np.ones((1, 3)), np.eye(3)[:2]
    assert measures.neighbour_overlap(one, one) is None
    assert measures.neighbour_overlap(two, two) is not None
    assert measures.similarity_rank_correlation(two, two) is None


@given(st.one_of(SERIES, TIED))
def test_average_ranks(x: F64) -> None:
    np.testing.assert_allclose(measures.average_ranks(x), slow_ranks(x))


@given(TIED, st.integers(0, 99))
def test_spearman(a: F64, seed: int) -> None:
    b = rng(seed).integers(0, 4, len(a)).astype(np.float32)
    if len(set(a.tolist())) > 1 and len(set(b.tolist())) > 1:
        assert measures.spearman(a, b) == pytest.approx(slow_pearson(slow_ranks(a), slow_ranks(b)), abs=1e-12)


def test_spearman_of_constants() -> None:
    constant, other = np.ones(3), np.arange(3.0)
    assert measures.spearman(constant, constant) == 1
    assert measures.spearman(constant, other) == 0
    assert measures.spearman(other, -other) == pytest.approx(-1)


def test_similarity_rank_correlation() -> None:
    theirs = rng(1).standard_normal((7, 4))
    ours = theirs + 0.2 * rng(2).standard_normal((7, 4))
    pairs = list(combinations(range(7), 2))
    a = slow_ranks(np.array([slow_cosine(ours[i], ours[j]) for i, j in pairs]))
    b = slow_ranks(np.array([slow_cosine(theirs[i], theirs[j]) for i, j in pairs]))
    assert measures.similarity_rank_correlation(ours, theirs) == pytest.approx(slow_pearson(a, b))


@given(TIED, st.integers(0, 99))
def test_kendall_tau(theirs: F64, seed: int) -> None:
    ours = theirs + rng(seed).integers(-2, 3, len(theirs)).astype(np.float32)
    total, decided = 0, 0
    for i, j in combinations(range(len(theirs)), 2):
        if abs(float(theirs[i] - theirs[j])) > 1e-6:
            decided += 1
            total += int(np.sign(ours[i] - ours[j]) * np.sign(theirs[i] - theirs[j]))
    got = measures.kendall_tau(ours, theirs)
    assert got == (None if decided == 0 else pytest.approx(total / decided))


def test_kendall_tau_does_not_judge_what_the_reference_cannot_tell_apart() -> None:
    theirs = np.array([0.5, 0.5 + 1e-9, 0.9])
    assert measures.kendall_tau(np.array([0.6, 0.4, 0.8]), theirs) == 1


@given(SERIES, st.integers(0, 99))
def test_ndcg(reference: F64, seed: int) -> None:
    scores = rng(seed).permutation(len(reference)).astype(np.float64)
    gains = slow_ranks(reference)
    if max(gains) == 0:
        return
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    got = sum(gains[i] / math.log2(place + 2) for place, i in enumerate(order))
    best = sum(gain / math.log2(place + 2) for place, gain in enumerate(sorted(gains, reverse=True)))
    assert measures.ndcg(scores, reference) == pytest.approx(got / best)
    assert measures.ndcg(reference, reference) == pytest.approx(1)


def test_ndcg_of_one_document() -> None:
    assert measures.ndcg(np.array([3.0]), np.array([1.0])) == 1


def test_span_f1() -> None:
    theirs = [[(0, 3, "PER"), (5, 9, "LOC")], [], [(1, 2, "ORG")]]
    ours = [[(0, 3, "PER"), (5, 8, "LOC")], [(0, 1, "PER")], [(1, 2, "ORG")]]
    # hits 2, found 4, wanted 3: precision 1/2, recall 2/3
    assert measures.span_f1(ours, theirs) == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))
    assert measures.span_f1([[]], [[]]) == 1
    assert measures.span_f1([[]], [[(0, 1, "PER")]]) == 0


@given(ROWS)
def test_softmax_and_sigmoid(x: F64) -> None:
    slow = [[math.exp(v) / math.fsum(math.exp(u) for u in row) for v in row] for row in x.tolist()]
    np.testing.assert_allclose(measures.softmax(x), slow, atol=1e-12)
    np.testing.assert_allclose(
        measures.sigmoid(x), [[1 / (1 + math.exp(-v)) for v in row] for row in x.tolist()], atol=1e-12
    )


def test_extreme_logits_do_not_overflow() -> None:
    x = np.array([1e30, -1e30, 0.0])
    np.testing.assert_allclose(measures.sigmoid(x), [1, 0, 0.5])
    np.testing.assert_allclose(measures.softmax(x), [1, 0, 0])


def test_finite_rows() -> None:
    x = np.zeros((4, 2, 2))
    x[1, 0, 1], x[3, 1, 1] = np.nan, -np.inf
    assert measures.finite_rows(x).tolist() == [True, False, True, False]
