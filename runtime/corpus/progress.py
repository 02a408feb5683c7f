"""What a job shows while it runs: texts, texts/s, tokens/s and the time left, on a terminal; nothing elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

Tokens = Callable[[], int | None]
"""Tokens run so far, None where nobody counts them."""


@contextmanager
def shown(*, total: int, done: int, tokens: Tokens, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Shows a bar while the block runs; call what it gives with each count of further rows that are done."""
    if quiet or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns: tuple[ProgressColumn, ...] = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("texts"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
    )
    began, fresh = time.perf_counter(), 0
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=total, completed=done, speed="")

        def advance(count: int) -> None:
            nonlocal fresh
            fresh += count
            seconds = time.perf_counter() - began
            text = speed(fresh, tokens(), seconds, left=total - done - fresh)
            bars.update(task, advance=count, speed=text)

        yield advance


def speed(texts: int, tokens: int | None, seconds: float, *, left: int) -> str:
    """As in "812 texts/s, 9,744 tokens/s, 0:03:10 left"."""
    if not texts or not seconds:
        return ""
    parts = [f"{texts / seconds:,.0f} texts/s"]
    if tokens:
        parts.append(f"{tokens / seconds:,.0f} tokens/s")
    remaining = round(left * seconds / texts)
    parts.append(f"{remaining // 3600}:{remaining // 60 % 60:02}:{remaining % 60:02} left")
    return ", ".join(parts)
