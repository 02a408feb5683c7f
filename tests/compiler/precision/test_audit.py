"""The range audit reads weights where they lie, in whatever type, and does not keep them in memory."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.compiler.engines.small import BERT, FILE, HEAD, WINDOWED, random_weights
from tests.compiler.resident import NEEDS_PROC, resident_kib

from bei.compiler import mapped
from bei.compiler.lowering.emit import emit
from bei.compiler.lowering.policy import ONNXRUNTIME_CPU
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
    viewed, copied = (audit(cfg, HEAD, weights, batches()) for weights in (stored, copies))
    assert viewed.ranges == pytest.approx(copied.ranges, rel=1e-5)
    assert len(viewed.outputs) == 2
    for found, expected in zip(viewed.outputs, copied.outputs, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@NEEDS_PROC
def test_what_was_read_does_not_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_KEPT", -(1 << 40))  # however little it is
    cfg, waits = replace(BERT, vocab=20_000), 0
    weights = random_weights(cfg, tmp_path)
    file = (tmp_path / FILE).resolve()

    def batches_once_the_pages_are_gone() -> Iterator[Batch]:
        nonlocal waits
        for batch in batches():
            yield batch
            assert mapped.regions([file])
            limit = time.monotonic() + 60
            while resident_kib(file) > 0:
                assert time.monotonic() < limit
                time.sleep(0.01)
            waits += 1

    audit(cfg, HEAD, weights, batches_once_the_pages_are_gone())
    assert waits == 2


def test_a_maximum_is_taken_as_soon_as_its_value_is_there(tmp_path: Path) -> None:
    """ONNX Runtime runs what leads to the last node first: the sites stand at the end, the first one last."""
    emitted = emit(BERT, HEAD, random_weights(BERT, tmp_path), ONNXRUNTIME_CPU, probed=True)
    _, *sites = [output.name for output in emitted.model.graph.outputs]
    assert [node.outputs[0].name for node in reversed(emitted.model.graph)][: len(sites)] == sites
    assert sites[0] == "embed.norm.in"
