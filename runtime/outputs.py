"""From an engine's raw output to what a user asked for. B rows, D dimensions, C labels; all float32."""

from collections.abc import Sequence

import numpy as np

from bei.errors import EngineError, InputError
from bei.manifest import HeadSpec
from bei.runtime.executor import Output

SHOWN = 5
"""Rows named in one message."""

TINY = 1e-12
"""Norms below count as this, as in torch.nn.functional.normalize; a zero row stays zero."""


def non_finite(rows: Sequence[Output] | Output) -> list[int]:
    """Indices of the rows that hold NaN or infinity; rows are alike but for their first axis."""
    together = rows if isinstance(rows, np.ndarray) or not rows else np.concatenate(rows)
    if np.isfinite(together).all():
        return []
    return [index for index, row in enumerate(rows) if not np.isfinite(row).all()]


def not_finite(rows: Sequence[int], why: str | None = None) -> EngineError:
    """The error about these rows, by the indices their owner knows."""
    shown = ", ".join(map(str, rows[:SHOWN])) + (" …" if len(rows) > SHOWN else "")
    return EngineError(
        f"the engine gave NaN or infinity for {len(rows)} of the rows ({shown})"
        f"{'' if why is None else f', and {why}'}. Check the bundle with bei-parity, or use another target."
    )


def check_dimensions(head: HeadSpec, dimensions: int | None) -> None:
    """Raise InputError unless a prefix of ``dimensions`` can be had."""
    if dimensions is None or dimensions == head.dimensions:
        return
    if not 1 <= dimensions < head.dimensions:
        raise InputError(f"dimensions: got {dimensions}, need 1 … {head.dimensions}.")
    if head.matryoshka and dimensions not in head.matryoshka:
        trained = ", ".join(map(str, sorted({*head.matryoshka, head.dimensions})))
        raise InputError(f"dimensions: got {dimensions}, but the model was trained for {trained}.")


def check_normalize(head: HeadSpec, normalize: bool | None) -> None:
    """Raise InputError where vectors are normalised inside the engine and the caller wants them otherwise."""
    if normalize is False and head.normalized:
        raise InputError(
            "normalize: false is not possible, the model's own last step normalises its vectors."
        )


def embeddings(
    raw_BD: Output, head: HeadSpec, dimensions: int | None = None, normalize: bool | None = None
) -> Output:
    """[B, D] → [B, dimensions]: a prefix, of unit length where the head normalises or ``normalize`` says so."""
    cut = dimensions is not None and dimensions < head.dimensions
    if not cut and (head.normalized or not normalize):
        return raw_BD
    x_BD = raw_BD[:, :dimensions]
    if not (head.normalized if normalize is None else normalize):
        return np.ascontiguousarray(x_BD)
    norm_B1 = np.linalg.norm(x_BD, axis=1, keepdims=True)
    unit: Output = x_BD / np.maximum(norm_B1, np.float32(TINY))
    return unit


def scores(logits: Output, head: HeadSpec) -> Output:
    """[..., C] logits → probabilities: a sigmoid for one label or a multi-label model, else a softmax."""
    if len(head.labels) == 1 or head.problem_type == "multi_label_classification":
        return _sigmoid(logits)
    return softmax(logits)


def softmax(logits: Output) -> Output:
    """Over the last axis, in float32."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    total: Output = shifted / shifted.sum(axis=-1, keepdims=True)
    return total


def _sigmoid(x: Output) -> Output:
    small = np.exp(-np.abs(x))  # never overflows
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)
