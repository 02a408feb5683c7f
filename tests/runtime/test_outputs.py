"""Prefixes, normalisation, probabilities, and the refusal of anything that is not a number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bei.errors import InputError
from bei.manifest import HeadSpec
from bei.runtime.outputs import check_dimensions, check_normalize, embeddings, non_finite, scores

LOGITS = arrays(np.float32, (3, 4), elements=st.floats(-1000, 1000, width=32))


def head(**changes: object) -> HeadSpec:
    fields = {
        "task": "embed",
        "output": "x",
        "dimensions": 4,
        "pooling": ("mean",),
        "include_prompt": True,
        "normalized": True,
    }
    return HeadSpec(**(fields | changes))  # type: ignore[arg-type]


RAW = np.array([[3, 4, 0, 12], [0, 0, 0, 5]], np.float32)


def test_a_prefix_of_a_normalising_model_has_unit_length_again() -> None:
    np.testing.assert_allclose(
        embeddings(RAW, head(), 2), np.array([[0.6, 0.8], [0, 0]]), rtol=1e-6
    )  # a zero row stays zero


def test_a_prefix_of_a_dot_product_model_is_only_cut() -> None:
    assert (embeddings(RAW, head(normalized=False), 2) == RAW[:, :2]).all()


def test_normalize_makes_any_model_unit_length() -> None:
    made = embeddings(RAW, head(normalized=False), normalize=True)
    np.testing.assert_allclose(made, np.array([[3, 4, 0, 12], [0, 0, 0, 13]]) / 13, rtol=1e-6)
    assert embeddings(RAW, head(normalized=False)) is RAW


def test_dimensions_are_checked() -> None:
    for fine in (None, 4, 1):
        check_dimensions(head(), fine)
    for bad in (0, -1, 5):
        with pytest.raises(InputError, match=r"dimensions: got .*, need 1 … 4"):
            check_dimensions(head(), bad)
    check_dimensions(head(matryoshka=(2,)), 2)
    with pytest.raises(InputError, match="trained for 2, 4"):
        check_dimensions(head(matryoshka=(2,)), 3)


def test_what_the_engine_normalised_stays_so() -> None:
    check_normalize(head(normalized=False), False)
    with pytest.raises(InputError, match="normalize: false"):
        check_normalize(head(), False)


@given(LOGITS)
def test_softmax_sums_to_one_and_keeps_the_order(logits: np.ndarray) -> None:
    made = scores(logits, head(labels=("a", "b", "c", "d")))
    np.testing.assert_allclose(made.sum(axis=1), 1, rtol=1e-5)
    best = logits.argmax(axis=1)
    assert (made[np.arange(3), best] == made.max(axis=1)).all()


@given(LOGITS)
def test_one_label_and_multi_label_get_a_sigmoid(logits: np.ndarray) -> None:
    multi = scores(logits, head(labels=("a", "b", "c", "d"), problem_type="multi_label_classification"))
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(multi, 1 / (1 + np.exp(-logits.astype(np.float64))), rtol=1e-5, atol=1e-30)
    assert (scores(logits[:, :1], head(labels=("a",))) == multi[:, :1]).all()


def test_rows_that_are_no_numbers_are_found() -> None:
    rows = np.ones((4, 2), np.float32)
    assert non_finite(rows) == non_finite(list(rows)) == non_finite([]) == []
    rows[1, 0], rows[3, 1] = np.nan, np.inf
    assert non_finite(rows) == non_finite(list(rows)) == [1, 3]
    ragged = [np.ones((3, 2), np.float32), np.full((1, 2), -np.inf, np.float32), np.zeros((0, 2), np.float32)]
    assert non_finite(ragged) == [1]
