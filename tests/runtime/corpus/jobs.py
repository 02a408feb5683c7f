"""Corpora of words the tiny tokenizer knows, `bei-embed` on them, and what it wrote."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bei.runtime.corpus.cli import main


def texts(count: int, seed: int = 0) -> list[str]:
    """Of 1 to 12 words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices("abcdefgh", k=rng.randint(1, 12))) for _ in range(count)]


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(out: Path | str) -> pa.Table:
    """All parts in order."""
    parts = sorted(Path(out).glob("part-*.parquet"))
    return pa.concat_tables([pq.read_table(part) for part in parts])


def failures(out: Path) -> list[dict[str, Any]]:
    files = sorted(out.glob("failed-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """`bei-embed` in this process: exit code, standard output, standard error."""
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err
