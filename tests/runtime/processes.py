"""Servers as processes of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bei

ROOT = Path(__file__).parents[2]
ENV = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join((str(Path(bei.__file__).parents[1]), str(ROOT))),
    "COLUMNS": "100",
}


@contextmanager
def server(
    *arguments: str, module: str = "bei.runtime.cli", environment: dict[str, str] | None = None
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A running bei-serve on a free port, and its URL, read from the one line it prints."""
    command = [sys.executable, "-m", module, *arguments]
    if "--port" not in arguments:
        command += ["--port", "0"]
    env = {**ENV, **(environment or {})}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("bei-serve: "), process.communicate()
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()
