"""How every command ends: with its exit code, and with one message on standard error for what went wrong."""

from collections.abc import Callable

from bei.errors import BeiError

INTERRUPTED = 130
NOTHING_LEFT = "nothing was left behind"


def report_errors(program: str, run: Callable[[], int], left: str = NOTHING_LEFT) -> int:
    """Run a command; an expected error is one message and an exit code, never a traceback. ``left``: what remains
    after an interrupt."""
    try:
        return run()
    except BeiError as error:
        _say(program, str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _say(program, f"interrupted; {left}")
        return INTERRUPTED


def _say(program: str, message: str) -> None:
    from rich.console import Console  # here: most commands that go well do without
    from rich.markup import escape

    console = Console(stderr=True, soft_wrap=True, emoji=False)
    console.print(f"[bold red]{program}:[/] {escape(message)}", highlight=False)
