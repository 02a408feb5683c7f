"""The first layer that drifts is named."""

import numpy as np
import numpy.typing as npt
import pytest

from bei.compiler.parity.layers import compare_layers
from bei.errors import ParityError

F32 = npt.NDArray[np.float32]
NAMES = ["embed", "layers.0", "layers.1", "layers.2", "output"]


def states(seed: int = 0) -> dict[str, F32]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((6, 8)).astype(np.float32) for name in NAMES}


def test_equal_states_do_not_drift() -> None:
    drift = compare_layers(states(), states(), 1e-4)
    assert drift.first is None
    assert drift.jump is None
    assert [row.name for row in drift.rows] == NAMES
    assert all(row.relative_error == 0 for row in drift.rows)


def test_the_first_layer_past_the_limit_and_the_largest_jump() -> None:
    theirs, ours = states(), states()
    for name, error in (("layers.0", 1e-3), ("layers.1", 2e-2), ("layers.2", 0.5), ("output", 0.6)):
        ours[name] = ours[name] * np.float32(1 + error)
    drift = compare_layers(ours, theirs, 1e-2)
    assert (drift.first, drift.jump) == ("layers.1", "layers.2")
    assert [row.relative_error for row in drift.rows] == pytest.approx([0, 1e-3, 2e-2, 0.5, 0.6], rel=1e-3)


def test_one_bad_token_is_enough() -> None:
    ours = states()
    ours["layers.1"][4] = -ours["layers.1"][4]
    drift = compare_layers(ours, states(), 1e-2)
    assert drift.first == "layers.1"
    assert drift.rows[2].cosine_distance == pytest.approx(2)


def test_values_that_are_not_finite() -> None:
    ours = states()
    ours["layers.2"][0, 0] = np.inf
    ours["output"][:] = np.nan
    drift = compare_layers(ours, states(), 1e-2)
    assert (drift.first, drift.jump) == ("layers.2", "layers.2")
    assert drift.rows[3].relative_error is None


def test_names_of_one_side_are_left_out() -> None:
    ours = states()
    del ours["layers.1"]
    ours["extra"] = ours["embed"]
    assert [row.name for row in compare_layers(ours, states(), 1).rows] == [
        "embed",
        "layers.0",
        "layers.2",
        "output",
    ]


def test_nothing_to_compare() -> None:
    with pytest.raises(ParityError, match="no common names"):
        compare_layers({"a": np.zeros((1, 1))}, states(), 1)
    with pytest.raises(ParityError, match=r"embed is \(5, 8\) here and \(6, 8\)"):
        compare_layers({"embed": np.zeros((5, 8))}, states(), 1)
