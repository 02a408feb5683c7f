"""bei-parity --zoo: the matrix as a table, JSON and a page."""

import argparse
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bei.compiler.fleet.machines import Here, check_workers, machine_for
from bei.compiler.fleet.state import read_state, write_state
from bei.compiler.parity.matrix import COLUMNS, Matrix, MatrixOptions, Row, cells, render_matrix, run_matrix
from bei.errors import ParityError

COLOURS = {"passed": "green", "failed": "bold red", "not run": "yellow"}
WIDTH = 160
"""Columns where the output is no terminal, such as a CI log."""


def run_zoo(args: argparse.Namespace) -> int:
    """Exit code: 0 every model passed, 1 one did not. Raises BeiError where nothing could be tried."""
    if args.bundle or args.checkpoint or args.texts or args.full or args.target or args.runner != "bei":
        raise ParityError(
            "bei-parity: --zoo goes with --only, --weights, --workers, --ray, --json and --html alone. Leave out the rest."
        )
    check_workers(args.workers, args.ray)
    workers = args.workers or 1
    alone = workers == 1 and args.ray is None
    machine = Here() if alone else machine_for(workers=workers, ray=args.ray, fresh=False)
    options = MatrixOptions(zoo=args.zoo, only=args.only or "*", weights_dir=args.weights)
    earlier = None if args.json is None else read_state(args.json, Matrix)
    console = Console(stderr=True)

    def done(row: Row, known: Matrix) -> None:
        before = earlier is not None and row in earlier.rows
        console.print(_line(row, before=before), highlight=False, soft_wrap=True)
        if args.json is not None:
            write_state(args.json, known)

    matrix = run_matrix(options, machine, earlier=earlier, done=done)
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


def _line(row: Row, *, before: bool) -> str:
    when = "measured before" if before else f"{row.seconds:.1f} s"
    return f"[{COLOURS[row.verdict]}]{row.verdict}[/]  {escape(row.repo)}  [dim]{when}[/]"
