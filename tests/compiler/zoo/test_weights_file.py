"""The writer against the safetensors library."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from bei.compiler.checkpoint.stored import DTYPES
from bei.compiler.zoo.shapes import TensorSpec
from bei.compiler.zoo.weights_file import file_size, split_shards, write_weights

SPECS = (
    TensorSpec(name="z.weight", dtype="F32", shape=(3, 5)),
    TensorSpec(name="a.weight", dtype="BF16", shape=(7,)),
    TensorSpec(name="b.weight", dtype="F16", shape=(2, 3)),
    TensorSpec(name="position_ids", dtype="I64", shape=(1, 4)),
    TensorSpec(name="a.bias", dtype="F32", shape=(1,)),
)


def values(spec: TensorSpec) -> Iterator[npt.NDArray[Any]]:
    """In two chunks."""
    flat = np.arange(math.prod(spec.shape)).astype(DTYPES[spec.dtype])
    yield flat[:3]
    yield flat[3:]


@pytest.mark.parametrize("metadata", [True, False])
def test_the_file_is_the_librarys_to_the_byte(tmp_path: Path, metadata: bool) -> None:
    write_weights(tmp_path / "ours", SPECS, values, metadata=metadata)
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
    tensors = {
        spec.name: torch.arange(math.prod(spec.shape)).to(kinds[spec.dtype]).reshape(spec.shape)
        for spec in SPECS
    }
    expected = safetensors.torch.save(tensors, {"format": "pt"} if metadata else None)
    assert (tmp_path / "ours").read_bytes() == expected
    assert file_size(SPECS, metadata=metadata) == len(expected)


def test_an_unpadded_header_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    write_weights(path, SPECS[:1], values, padded=False)
    assert path.stat().st_size == file_size(SPECS[:1], padded=False) < file_size(SPECS[:1])
    with safetensors.safe_open(path, "np") as file:
        np.testing.assert_array_equal(file.get_tensor("z.weight"), np.arange(15.0).reshape(3, 5))


def test_a_sparse_file_has_the_size_but_not_the_blocks(tmp_path: Path) -> None:
    big = TensorSpec(name="big", dtype="F32", shape=(1 << 14, 1 << 14))
    write_weights(tmp_path / "sparse", (big,), None)
    found = (tmp_path / "sparse").stat()
    assert found.st_size == file_size((big,)) > 1 << 30
    assert found.st_blocks * 512 < 1 << 20


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.data())
def test_shards_are_consecutive_and_none_is_empty(sizes: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(sizes)))
    tensors = [TensorSpec(name=str(i), dtype="F32", shape=(size,)) for i, size in enumerate(sizes)]
    parts = split_shards(tensors, count)
    assert len(parts) == count and all(parts)
    assert [spec for part in parts for spec in part] == tensors
