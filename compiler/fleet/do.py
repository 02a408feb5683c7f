"""What a process is asked to do, and does."""

from pathlib import Path
from typing import Any

import msgspec

from bei.compiler.fleet.cells import CellTask, compile_cell
from bei.compiler.fleet.work import answered
from bei.compiler.parity.matrix import RowTask, check_row


def do(request: bytes) -> bytes:
    """The answer to a request, in the process that does it."""
    return answered(lambda: _done(request))


def _done(request: bytes) -> Any:
    task = msgspec.json.decode(request, type=CellTask | RowTask, dec_hook=_path)
    return compile_cell(task) if isinstance(task, CellTask) else check_row(task)


def _path(kind: type, value: Any) -> Any:
    return Path(value) if kind is Path else value
