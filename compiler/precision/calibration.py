"""Calibration texts as batches of ids: the user's own, or the built-in set that parity also uses."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from bei.compiler.parity.text_files import read_texts
from bei.compiler.parity.texts import Sample, builtin
from bei.compiler.precision.audit import Batch
from bei.compiler.weights import Weight
from bei.manifest import Task

Ids = tuple[list[int], list[int]]
"""Token ids and token types."""

MAX_TOKENS = 512
"""Tokens of a calibration text: magnitudes do not grow with length, the time of an audit does."""
BATCH_TOKENS = 256
"""Small batches: an audited graph keeps every layer's values until its maxima are taken."""
COUNT = 64
OPERATIONS = 3e11
"""Floating-point operations that an audit may take, a few seconds on two cores: big models see fewer texts."""
FEWEST_TOKENS = 512


def token_budget(weights: Mapping[str, Weight]) -> int:
    """Tokens an audit of this model may run: two operations for each weight that a token meets."""
    met = sum(math.prod(w.shape) for name, w in weights.items() if not name.startswith("embed."))
    return max(FEWEST_TOKENS, int(OPERATIONS / (2 * met)))


def calibration_batches(
    tokenizer_json: str,
    task: Task,
    max_length: int,
    pad_id: int,
    *,
    texts: Path | None = None,
    tokens: int | None = None,
) -> list[Batch]:
    """Right-padded ids, mask, types int64 [B, L], longest texts together; of the built-in set, as many as fit into
    ``tokens``. Raises ParityError for an unusable file."""
    limit = min(max_length, MAX_TOKENS)
    samples = read_texts(texts) if texts is not None else _spread(builtin(task, limit))
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.enable_truncation(limit)
    encoded = tokenizer.encode_batch([s.text if s.pair is None else (s.text, s.pair) for s in samples])
    rows = [(e.ids, e.type_ids) for e in encoded if e.ids]
    if texts is None and tokens is not None:
        rows = _within(rows, tokens)
    rows.sort(key=lambda row: len(row[0]))
    return [_pad(group, pad_id) for group in _groups(rows)]


def _spread(samples: Sequence[Sample]) -> list[Sample]:
    """About `COUNT` of the built-in texts: of each kind every n-th from the last on, which is its longest."""
    step = max(1, len(samples) // COUNT)
    kinds: dict[str, list[Sample]] = {}
    for sample in samples:
        kinds.setdefault(sample.kind, []).append(sample)
    return [sample for of_kind in kinds.values() for sample in of_kind[::-step]]


def _within(rows: Sequence[Ids], tokens: int) -> list[Ids]:
    """Rows from all over the set (every seventh, then those between) as long as they fit."""
    kept: list[Ids] = []
    for start in range(7):
        for row in rows[start::7]:
            if len(row[0]) <= tokens:
                kept.append(row)
                tokens -= len(row[0])
    return kept


def _groups(rows: Sequence[Ids]) -> list[list[Ids]]:
    groups: list[list[Ids]] = []
    for row in rows:
        if not groups or (len(groups[-1]) + 1) * len(row[0]) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(row)
    return groups


def _pad(rows: Sequence[Ids], pad_id: int) -> Batch:
    length = max(len(ids) for ids, _ in rows)
    ids = np.full((len(rows), length), pad_id, np.int64)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    for i, (row, kinds) in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)], types[i, : len(row)] = row, 1, kinds
    return ids, mask, types
