"""Where an engine's function first leaves the reference's: hidden states compared layer by layer."""

from collections.abc import Mapping

import msgspec
import numpy as np
import numpy.typing as npt

from bei.compiler.parity.measures import cosine_distance, relative_error
from bei.errors import ParityError

Array = npt.NDArray[np.floating]

DRIFT = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
"""Relative error of a token's hidden state from which a layer counts as drifted."""


class LayerRow(msgspec.Struct, frozen=True, kw_only=True):
    """One layer: worst over the tokens. ``relative_error`` is ‖ours − theirs‖ / ‖theirs‖; both None where a value of
    ours is not finite."""

    name: str
    cosine_distance: float | None
    relative_error: float | None
    largest: float
    """Largest magnitude in the reference."""


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """``first`` is the first layer past ``limit``; ``jump`` the one that adds most to the relative error."""

    limit: float
    rows: tuple[LayerRow, ...]
    first: str | None
    jump: str | None


def compare_layers(ours: Mapping[str, Array], theirs: Mapping[str, Array], limit: float) -> Drift:
    """Hidden states [n, D] by name, in order of computation; names only one side has are left out.

    Raises ParityError when no name is common or shapes differ.
    """
    common = [name for name in theirs if name in ours]
    if not common:
        raise ParityError(f"layers: no common names (ours {_some(ours)}; the reference {_some(theirs)}).")
    rows = tuple(_row(name, ours[name], theirs[name]) for name in common)
    bad = (row.name for row in rows if row.relative_error is None or row.relative_error > limit)
    return Drift(limit=limit, rows=rows, first=next(bad, None), jump=_jump(rows))


def _row(name: str, ours: Array, theirs: Array) -> LayerRow:
    if ours.shape != theirs.shape:
        raise ParityError(f"layers: {name} is {ours.shape} here and {theirs.shape} in the reference.")
    finite = bool(np.isfinite(ours).all())
    return LayerRow(
        name=name,
        cosine_distance=float(cosine_distance(ours, theirs).max()) if finite else None,
        relative_error=float(relative_error(ours, theirs).max()) if finite else None,
        largest=float(np.abs(theirs).max()),
    )


def _jump(rows: tuple[LayerRow, ...]) -> str | None:
    """A value that is not finite is the largest jump of all; the first of equals wins."""
    errors = [np.inf if row.relative_error is None else row.relative_error for row in rows]
    steps = [b - a if np.isfinite(a) else 0.0 for a, b in zip([0.0, *errors], errors, strict=False)]
    return rows[int(np.argmax(steps))].name if max(steps) > 0 else None


def _some(names: Mapping[str, Array]) -> str:
    return ", ".join([*names][:4]) + (" …" if len(names) > 4 else "")
