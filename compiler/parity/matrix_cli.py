"""bei-parity --zoo: the matrix as a table, JSON and a page."""

import argparse
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bei.compiler.parity.matrix import COLUMNS, Matrix, MatrixOptions, Row, cells, render_matrix, run_matrix
from bei.errors import ParityError

COLOURS = {"passed": "green", "failed": "bold red", "not run": "yellow"}
WIDTH = 160
"""Columns where the output is no terminal, such as a CI log."""


def run_zoo(args: argparse.Namespace) -> int:
    """Exit code: 0 every model passed, 1 one did not. Raises BeiError where nothing could be tried."""
    if args.bundle or args.checkpoint or args.texts or args.full or args.target or args.runner != "bei":
        raise ParityError(
            "bei-parity: --zoo goes with --only, --weights, --workers, --json and --html alone. Leave out the rest."
        )
    workers = 1 if args.workers is None else args.workers
    if workers < 1:
        raise ParityError(f"bei-parity: --workers is {workers} (need at least 1).")
    options = MatrixOptions(zoo=args.zoo, only=args.only or "*", weights_dir=args.weights, workers=workers)
    console = Console(stderr=True)
    matrix = run_matrix(options, lambda row: console.print(_line(row), highlight=False, soft_wrap=True))
    write_copies(args.json, encode_matrix(matrix), args.html, render_matrix(matrix))
    show_matrix(matrix, Console(width=None if sys.stdout.isatty() else WIDTH))
    return 0 if matrix.passed else 1


def encode_matrix(matrix: Matrix) -> bytes:
    """Indented JSON, UTF-8."""
    return msgspec.json.format(msgspec.json.encode(matrix), indent=2) + b"\n"


def write_copies(json: Path | None, data: bytes, html: Path | None, page: str) -> None:
    """What ``--json`` and ``--html`` ask for. Raises ParityError."""
    for path, content in ((json, data), (html, page.encode())):
        if path is not None:
            try:
                path.write_bytes(content)
            except OSError as error:
                raise ParityError(f"{path}: cannot be written ({error.strerror}).") from None


def show_matrix(matrix: Matrix, console: Console) -> None:
    """A table, then the reasons of those that did not pass."""
    table = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, no_wrap=name == "model")
    for row in matrix.rows:
        listed = [escape(cell) for cell in cells(row)]
        listed[COLUMNS.index("verdict")] = f"[{COLOURS[row.verdict]}]{row.verdict}[/]"
        table.add_row(*listed)
    console.print(table)
    for row in matrix.rows:
        if row.reason is not None:
            console.print(f"{escape(row.repo)}: {escape(row.reason)}", highlight=False, soft_wrap=True)


def _line(row: Row) -> str:
    return f"[{COLOURS[row.verdict]}]{row.verdict}[/]  {escape(row.repo)}  [dim]{row.seconds:.1f} s[/]"
