"""What a GPU gave, held against the prepared answers. B texts, L tokens of the longest, D width."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

F32 = npt.NDArray[np.float32]


def ids_of(ids: torch.Tensor, mask: torch.Tensor) -> list[npt.NDArray[Any]]:
    """Each text's own ids, of [B, L] and its mask."""
    return [line[keep.bool()].numpy() for line, keep in zip(ids, mask, strict=True)]


def cosines(a: F32, b: F32) -> F32:
    """Of the last axis."""
    return np.asarray((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))


def near_expected(
    got: Sequence[F32], expected: torch.Tensor, mask: torch.Tensor, typical: float = 0.9999
) -> None:
    """Every text's tokens [n, D] by their cosines with ``expected`` [B, L, D]: the median is above ``typical``, and none ten
    times as far from 1 (a token may nearly cancel in a norm)."""
    for line, keep, result in zip(expected, mask, got, strict=True):
        found = cosines(line[keep.bool()].numpy(), result)
        assert found.min() > 10 * typical - 9
        assert np.median(found) > typical
