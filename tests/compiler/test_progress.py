"""Stages on a terminal, and nothing anywhere else."""

import io
import threading

import pytest
from rich.console import Console as Terminal

from bei.compiler import progress


def terminal() -> tuple[progress.Console, io.StringIO]:
    shown = io.StringIO()
    return progress.Console(Terminal(file=shown, force_terminal=True, width=100)), shown


def test_bytes_and_items_are_shown() -> None:
    console, shown = terminal()
    with console.stage("hashing", 2_000_000) as stage:
        stage.advance(2_000_000)
    with console.stage("parity", 40, unit="items") as stage:
        stage.advance(40)
    assert "hashing" in shown.getvalue() and "2.0 MB / 2.0 MB" in shown.getvalue()
    assert "parity" in shown.getvalue() and "40 / 40" in shown.getvalue()


def test_a_stage_of_unknown_size_ends_full() -> None:
    console, shown = terminal()
    with console.stage("building"):
        pass
    assert "building" in shown.getvalue() and "✓" in shown.getvalue()


def test_stages_nest_and_advance_from_threads() -> None:
    console, shown = terminal()
    with (
        console.stage("outer", 100, unit="items") as outer,
        console.stage("inner", 10, unit="items") as inner,
    ):
        threads = [threading.Thread(target=outer.advance, args=(10,)) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        inner.advance(10)
    assert "100 / 100" in shown.getvalue() and "10 / 10" in shown.getvalue()


def test_an_error_leaves_the_terminal_usable() -> None:
    console, shown = terminal()
    with pytest.raises(RuntimeError), console.stage("first", 10, unit="items"):
        raise RuntimeError
    assert "10 / 10" not in shown.getvalue()
    with console.stage("second", 1, unit="items") as stage:
        stage.advance(1)
    assert "1 / 1" in shown.getvalue()


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Quiet().stage("hashing", 10) as stage:
        stage.advance(10)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("is_terminal", "quiet", "expected"),
    [(True, False, progress.Console), (True, True, progress.Quiet), (False, False, progress.Quiet)],
)
def test_bars_only_for_a_terminal(
    is_terminal: bool, quiet: bool, expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    assert isinstance(progress.for_stderr(quiet=quiet), expected)
