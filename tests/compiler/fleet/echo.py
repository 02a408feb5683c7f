"""A process of the pool that does what it is told: say, sleep, die, remember who it is."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from bei.compiler.fleet.child import serve
from bei.compiler.fleet.work import answered


def do(request: bytes) -> bytes:
    return answered(lambda: _done(json.loads(request)))


def _done(asked: dict[str, Any]) -> Any:
    print("what a library prints")
    match asked["do"]:
        case "say":
            return [asked["what"], os.getpid()]
        case "raise":
            raise ValueError("it went\n wrong")
        case "die":
            print("std::bad_alloc", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(7)
        case "note":  # how far it is, and how far another was when it began
            note, other = Path(asked["file"]), Path(asked["other"])
            seen = other.read_text() if other.exists() else None
            note.write_text("began")
            try:
                _wait_for(Path(asked["until"]))
            except KeyboardInterrupt:
                note.write_text("interrupted")
                raise
            note.write_text("done")
            return seen
    return None


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(serve(do))
