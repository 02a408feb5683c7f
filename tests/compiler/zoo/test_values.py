"""Random weights: reproducible, independent of chunks, and around the centre they should have."""

import numpy as np
import numpy.typing as npt
import pytest

from bei.compiler.zoo import values
from bei.compiler.zoo.shapes import TensorSpec
from bei.compiler.zoo.values import live_values


def draw(
    name: str,
    *shape: int,
    dtype: str = "F32",
    seed: str = "0",
    norm_centre: float = 1.0,
    layers: int = 2,
    gated: bool = False,
) -> npt.NDArray[np.float64]:
    spec = TensorSpec(name=name, dtype=dtype, shape=shape)
    chunks = list(live_values(spec, seed=seed, norm_centre=norm_centre, layers=layers, gated=gated))
    return np.concatenate([chunk.reshape(-1) for chunk in chunks]).astype(np.float64).reshape(shape)


def test_a_seed_and_a_name_give_one_tensor() -> None:
    a = draw("x.weight", 8, 8)
    np.testing.assert_array_equal(a, draw("x.weight", 8, 8))
    assert not np.array_equal(a, draw("y.weight", 8, 8))
    assert not np.array_equal(a, draw("x.weight", 8, 8, seed="1"))


@pytest.mark.parametrize("name", ["x.weight", "layers.0.mlp.down_proj.weight"])
def test_chunks_do_not_change_the_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw(name, 50, 7)
    monkeypatch.setattr(values, "CHUNK", 20)
    np.testing.assert_array_equal(draw(name, 50, 7), whole)


@pytest.mark.parametrize("centre", [0.0, 1.0])
def test_norms_lie_around_their_centre_without_being_there(centre: float) -> None:
    norm = draw("layers.0.input_layernorm.weight", 512, norm_centre=centre)
    assert abs(norm.mean() - centre) < 0.05
    assert norm.std() > 0.1
    sharper = draw("layers.0.self_attn.q_norm.weight", 512, norm_centre=centre)
    assert sharper.mean() > norm.mean() + 0.3


def test_branches_end_in_balanced_rows_that_shrink_with_depth() -> None:
    shallow = draw("encoder.layer.0.output.dense.weight", 64, 256)
    deep = draw("encoder.layer.0.output.dense.weight", 64, 256, layers=24)
    np.testing.assert_allclose(shallow.mean(axis=1), 0, atol=1e-6)
    assert deep.std() < shallow.std() / 4


def test_scores_are_sharp_where_tokens_resemble_one_another() -> None:
    name = "encoder.layer.0.attention.self.query.weight"
    assert draw(name, 64, 256).std() > 1.5 * draw(name, 64, 256, gated=True).std()


def test_half_precision_is_the_rounded_single_precision() -> None:
    single = draw("x.weight", 16, 16).astype(np.float32)
    np.testing.assert_array_equal(draw("x.weight", 16, 16, dtype="F16"), single.astype(np.float16))
    np.testing.assert_allclose(draw("x.weight", 16, 16, dtype="BF16"), single, rtol=2**-8)


def test_buffers_count_up() -> None:
    ids = draw("embeddings.position_ids", 1, 6, dtype="I64")
    np.testing.assert_array_equal(ids, [[0, 1, 2, 3, 4, 5]])
