"""What a long step tells the person waiting for it: named stages that advance, shown on a terminal or nowhere.

with progress.stage("hashing", total=nbytes) as stage:
    stage.advance(len(chunk))
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol

from rich.console import Console as Terminal
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

Unit = Literal["bytes", "items"]


class Stage(Protocol):
    """One running stage."""

    def advance(self, amount: int) -> None:
        """Count ``amount`` more bytes or items; may be called from any thread."""


class Progress(Protocol):
    """Where stages are shown."""

    def stage(
        self, name: str, total: int | None = None, *, unit: Unit = "bytes"
    ) -> AbstractContextManager[Stage]:
        """Show ``name`` while the block runs; ``total`` is None where the amount is not known."""


class _Silent:
    def advance(self, amount: int) -> None:
        """Nothing to show."""


class Quiet:
    """Shows nothing."""

    @contextmanager
    def stage(self, name: str, total: int | None = None, *, unit: Unit = "bytes") -> Iterator[Stage]:
        yield _Silent()


class _Amount(ProgressColumn):
    """12.3 MB / 90.9 MB, or 12 / 40."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text("")
        done, total = int(task.completed), int(task.total)
        if task.fields["unit"] == "bytes":
            return Text(f"{decimal(done)} / {decimal(total)}", style="progress.download")
        return Text(f"{done} / {total}", style="progress.download")


class _Bar:
    def __init__(self, bars: Bars, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def advance(self, amount: int) -> None:
        self._bars.advance(self._task, amount)


class Console:
    """Bars on a terminal: one line a stage, with the time it took. Stages may nest."""

    def __init__(self, terminal: Terminal | None = None) -> None:
        columns = (
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<12}"),
            BarColumn(),
            _Amount(),
            TimeElapsedColumn(),
        )
        self._bars = Bars(*columns, console=terminal or Terminal(stderr=True))
        self._running = 0
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, name: str, total: int | None = None, *, unit: Unit = "bytes") -> Iterator[Stage]:
        self._open()
        task = self._bars.add_task(name, total=total, unit=unit)
        try:
            yield _Bar(self._bars, task)
            done = self._bars.tasks[self._bars.task_ids.index(task)].completed
            self._bars.update(task, total=max(done, total or 1), completed=max(done, total or 1))
        finally:
            self._bars.stop_task(task)
            self._close()

    def _open(self) -> None:
        with self._lock:
            if self._running == 0:
                self._bars.start()
            self._running += 1

    def _close(self) -> None:
        with self._lock:
            self._running -= 1
            if self._running == 0:
                self._bars.stop()
                for task in list(self._bars.task_ids):
                    self._bars.remove_task(task)


def for_stderr(*, quiet: bool = False) -> Progress:
    """Bars when standard error is a terminal and ``quiet`` is not asked for, otherwise nothing."""
    return Console() if sys.stderr.isatty() and not quiet else Quiet()


QUIET = Quiet()
"""The default of functions that take a `Progress`."""
