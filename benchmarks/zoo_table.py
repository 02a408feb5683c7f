"""The README's table of models, from results/zoo_parity.json (`bei-parity --zoo model_zoo.yaml --json` writes it).

python -m benchmarks.zoo_table            prints the table
python -m benchmarks.zoo_table --update   puts it between the markers in README.md
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from benchmarks.record import RESULTS, table

from bei.compiler.parity.matrix import Matrix

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- zoo-table -->", "<!-- /zoo-table -->"


def rows(matrix: Matrix) -> list[Mapping[str, Any]]:
    """One a model; errors of embeddings as 1 − cosine, of logits relative above 1."""
    return [
        {
            "model": f"[{row.repo}](https://huggingface.co/{row.repo})",
            "adapter": row.adapter,
            "task": row.task,
            "weights": row.weights or "",
            "parity": row.verdict,
            "worst text": _worst(row.cosine, row.logit_error),
        }
        for row in matrix.rows
    ]


def updated(readme: str, text: str) -> str:
    """``readme`` with ``text`` between the markers. Raises ValueError without them."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"no {START} … {END}")
    return f"{before}{START}\n\n{text}\n\n{END}{after}"


def _worst(cosine: float | None, logit_error: float | None) -> str:
    if cosine is not None:
        return f"1 − cos {1 - cosine:.0e}"
    return "" if logit_error is None else f"logit off by {logit_error:.0e}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The README's table of models.")
    parser.add_argument("--update", action="store_true", help="put it into README.md")
    args = parser.parse_args(argv)
    matrix = msgspec.json.decode((RESULTS / "zoo_parity.json").read_bytes(), type=Matrix)
    text = table(rows(matrix))
    if not args.update:
        print(text)
        return 0
    try:
        README.write_text(updated(README.read_text(encoding="utf-8"), text), encoding="utf-8")
    except ValueError as error:
        print(f"{README}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
