"""Token rows to the arrays an engine takes. B rows, L tokens of the longest one, T tokens in all.

Padded: every row in a line of its own, filled up at the right end. Packed: all tokens in one line, with two index
arrays that lead from there to the padded form and back, so that only attention ever sees padding.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bei.errors import InputError
from bei.runtime.executor import Row

Array = npt.NDArray[Any]


def pad(
    rows: Sequence[Row], pad_id: int, dtype: npt.DTypeLike, *, multiple: int = 1, longest: int | None = None
) -> dict[str, Array]:
    """``input_ids``, ``attention_mask``, ``token_type_ids`` [B, L] and ``prompt_length`` [B], all of ``dtype``.

    Padding slots hold ``pad_id``, 0 and 0. L is the longest row's length, rounded up to a ``multiple`` as far as
    ``longest`` allows. Raises InputError for no rows or a row without tokens.
    """
    mask = _mask(rows, multiple, longest)
    ids = np.full(mask.shape, pad_id, dtype)
    types = np.zeros(mask.shape, dtype)
    ids[mask] = np.concatenate([row.ids for row in rows])
    types[mask] = np.concatenate([row.types for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": mask.astype(dtype),
        "token_type_ids": types,
        "prompt_length": _prompts(rows, dtype),
    }


def pack(rows: Sequence[Row], dtype: npt.DTypeLike = np.int32) -> dict[str, Array]:
    """The packed inputs, all of ``dtype``.

    ``input_ids``, ``token_type_ids`` [T]; ``pad_index`` [B, L]: the token in each slot (0 in padding slots);
    ``unpad_index`` [T]: each token's slot in the flattened [B·L]; ``attention_mask`` [B, L]; ``prompt_length`` [B].
    Raises InputError for no rows or a row without tokens.
    """
    mask = _mask(rows)
    slots = np.flatnonzero(mask)
    index = np.zeros(mask.shape, dtype)
    index[mask] = np.arange(slots.size)
    return {
        "input_ids": np.concatenate([row.ids for row in rows]).astype(dtype, copy=False),
        "token_type_ids": np.concatenate([row.types for row in rows]).astype(dtype, copy=False),
        "pad_index": index,
        "unpad_index": slots.astype(dtype),
        "attention_mask": mask.astype(dtype),
        "prompt_length": _prompts(rows, dtype),
    }


def unpadded(out: Array, rows: Sequence[Row]) -> list[Array]:
    """[B, L, d] → each row's own [n_i, d]."""
    return [out[i, : row.ids.size] for i, row in enumerate(rows)]


def _prompts(rows: Sequence[Row], dtype: npt.DTypeLike) -> Array:
    return np.array([row.prompt_tokens for row in rows], dtype)


def _mask(rows: Sequence[Row], multiple: int = 1, longest: int | None = None) -> npt.NDArray[np.bool_]:
    """[B, L], true where a token is."""
    if not rows:
        raise InputError("batch: no rows. Pass at least one.")
    lengths = np.array([row.ids.size for row in rows])
    if not lengths.all():
        raise InputError(
            f"row {int(lengths.argmin())}: no tokens (an engine needs at least 1). Leave the text out."
        )
    rounded = -(-int(lengths.max()) // multiple) * multiple
    width = max(int(lengths.max()), rounded if longest is None else min(rounded, longest))
    mask: npt.NDArray[np.bool_] = np.arange(width) < lengths[:, None]
    return mask
