"""Rows to the rectangular inputs of a padded engine. B rows, L the longest row's length."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bei.runtime.executor import Row

Inputs = dict[str, npt.NDArray[np.int64]]


def pad(rows: Sequence[Row], names: Sequence[str], pad_id: int) -> Inputs:
    """The named inputs, int64: ``input_ids``, ``attention_mask`` and ``token_type_ids`` [B, L] padded on the right,
    ``prompt_length`` [B]. Raises KeyError for any other name."""
    lengths = np.array([len(row.ids) for row in rows], np.int64)
    real_BL: npt.NDArray[np.bool_] = np.arange(lengths.max()) < lengths[:, None]
    return {name: _input(name, rows, real_BL, pad_id) for name in names}


def _input(
    name: str, rows: Sequence[Row], real_BL: npt.NDArray[np.bool_], pad_id: int
) -> npt.NDArray[np.int64]:
    match name:
        case "input_ids":
            return _spread([row.ids for row in rows], real_BL, pad_id)
        case "token_type_ids":
            return _spread([row.types for row in rows], real_BL, 0)
        case "attention_mask":
            return real_BL.astype(np.int64)
        case "prompt_length":
            return np.array([row.prompt_tokens for row in rows], np.int64)
    raise KeyError(name)


def _spread(
    parts: Sequence[npt.NDArray[np.int32]], real_BL: npt.NDArray[np.bool_], fill: int
) -> npt.NDArray[np.int64]:
    out_BL = np.full(real_BL.shape, fill, np.int64)
    out_BL[real_BL] = np.concatenate(parts)  # a boolean mask selects row by row, as the parts lie
    return out_BL
