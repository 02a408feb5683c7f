"""What a benchmark leaves behind: one JSON file a run, with the machine and the versions, and a table for people."""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bei.runtime.cpu import processor

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "bei",
    "onnxruntime",
    "onnxruntime-gpu",
    "uvicorn",
    "tensorrt-rtx-cu13",
    "tokenizers",
    "torch",
    "transformers",
    "sentence-transformers",
    "infinity-emb",
    "ray",
)

Row = Mapping[str, Any]


def machine() -> dict[str, Any]:
    """The processor, its usable cores, memory, Python and package versions."""
    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def save(name: str, what: str, rows: Sequence[Row]) -> None:
    """Write ``results/<name>.json`` and ``.md``, and print the table."""
    (RESULTS / name).parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "what": what,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine(),
        "rows": list(rows),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")
    text = f"# {what}\n\n{_circumstances(facts)}\n\n{table(rows)}\n"
    (RESULTS / f"{name}.md").write_text(text)
    print(text)


def peak_mb() -> float:
    """Peak resident memory of this program alone: getrusage's maximum would include the process that started it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 / 1e6


def table(rows: Sequence[Row]) -> str:
    """A Markdown table; columns in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """median (smallest to largest)"""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _circumstances(facts: Mapping[str, Any]) -> str:
    m = facts["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in m["versions"].items())
    return f"{facts['date']}, {m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB; Python {m['python']}, {versions}."


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
