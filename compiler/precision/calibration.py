"""Calibration texts as batches of ids: the user's own, or the built-in set that parity also uses."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from bei.compiler.parity.text_files import read_texts
from bei.compiler.parity.texts import Sample, builtin
from bei.compiler.precision.audit import Batch
from bei.manifest import Task

MAX_TOKENS = 512
"""Tokens of a calibration text: magnitudes do not grow with length, the time of an audit does."""
BATCH_TOKENS = 2048
COUNT = 64


def calibration_batches(
    tokenizer_json: str, task: Task, max_length: int, pad_id: int, texts: Path | None = None
) -> list[Batch]:
    """Right-padded ids, mask, types int64 [B, L], longest texts together. Raises ParityError for an unusable file."""
    limit = min(max_length, MAX_TOKENS)
    samples = read_texts(texts) if texts is not None else _spread(builtin(task, limit))
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.enable_truncation(limit)
    encoded = tokenizer.encode_batch([s.text if s.pair is None else (s.text, s.pair) for s in samples])
    rows = sorted(((e.ids, e.type_ids) for e in encoded if e.ids), key=lambda row: len(row[0]))
    return [_pad(group, pad_id) for group in _groups(rows)]


def _spread(samples: Sequence[Sample]) -> list[Sample]:
    """Every n-th of the built-in texts, so that each kind is there."""
    step = max(1, len(samples) // COUNT)
    return list(samples[::step])


def _groups(rows: Sequence[tuple[list[int], list[int]]]) -> list[list[tuple[list[int], list[int]]]]:
    groups: list[list[tuple[list[int], list[int]]]] = []
    for row in rows:
        if not groups or (len(groups[-1]) + 1) * len(row[0]) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(row)
    return groups


def _pad(rows: Sequence[tuple[list[int], list[int]]], pad_id: int) -> Batch:
    length = max(len(ids) for ids, _ in rows)
    ids = np.full((len(rows), length), pad_id, np.int64)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    for i, (row, kinds) in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)], types[i, : len(row)] = row, 1, kinds
    return ids, mask, types
