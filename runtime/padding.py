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
    real_BL = np.arange(lengths.max()) < lengths[:, None]

    def spread(parts: list[npt.NDArray[np.int32]], fill: int) -> npt.NDArray[np.int64]:
        out_BL = np.full(real_BL.shape, fill, np.int64)
        out_BL[real_BL] = np.concatenate(parts)  # a boolean mask selects row by row, as the parts lie
        return out_BL

    makers = {
        "input_ids": lambda: spread([row.ids for row in rows], pad_id),
        "token_type_ids": lambda: spread([row.types for row in rows], 0),
        "attention_mask": lambda: real_BL.astype(np.int64),
        "prompt_length": lambda: np.array([row.prompt_tokens for row in rows], np.int64),
    }
    return {name: makers[name]() for name in names}
