"""The range audit reads weights where they lie, in whatever type."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.compiler.engines.small import BERT, HEAD, WINDOWED, random_weights

from bei.compiler.precision.audit import Batch, audit


def batches() -> list[Batch]:
    rng = np.random.default_rng(1)
    ids = rng.integers(0, BERT.vocab, (3, 11))
    mask = (np.arange(11) < np.array([[11], [7], [1]])).astype(np.int64)
    return [(ids, mask, np.zeros_like(ids)), (ids[1:], mask[1:], np.zeros_like(ids[1:]))]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("cfg", [BERT, WINDOWED], ids=["bert", "windowed"])
def test_weights_in_a_file_are_read_as_those_in_memory(cfg: Any, dtype: Any, tmp_path: Path) -> None:
    stored = random_weights(cfg, tmp_path, dtype)
    assert {weight.nbytes // weight.stored().size for weight in stored.values()} == {np.dtype(dtype).itemsize}
    copies = {
        name: replace(weight, data=weight.float32(), dtype="F32", file=None, folder=None)
        for name, weight in stored.items()
    }
    mapped, copied = (audit(cfg, HEAD, weights, batches()) for weights in (stored, copies))
    assert mapped.ranges == pytest.approx(copied.ranges, rel=1e-5)
    assert len(mapped.outputs) == 2
    for found, expected in zip(mapped.outputs, copied.outputs, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
