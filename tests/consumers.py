"""Other people's libraries, in processes of their own: see consumers.txt."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(sys.prefix) / "consumers"

needs_consumers = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="needs the libraries of tests/consumers.txt (scripts/setup)"
)


def ask(script: Path, *arguments: object, libraries: Path | None = None) -> Any:
    """Run ``script`` where those libraries come first; what it printed last, read as JSON. ``libraries``: a folder of
    shared objects to find."""
    environment = {**os.environ, "PYTHONPATH": str(FOLDER), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if libraries is not None:
        environment["LD_LIBRARY_PATH"] = str(libraries)
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
