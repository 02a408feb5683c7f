"""bei-doctor: what can be compiled and served on this machine, and for each "no" what to do about it.

Exit codes: 0 bei-serve can run here (with BUNDLE: one of its engines); 1 it cannot; 2 the bundle is not usable.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from bei.command import report_errors
from bei.compiler.doctor.answers import Answer, bundle_answers, compiles, serves
from bei.compiler.doctor.machine import Machine, look
from bei.runtime.bundle import Bundle, open_bundle
from bei.runtime.evidence import size


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` prints. ``bundle`` None: none was given."""

    machine: Machine
    compiles: tuple[Answer, ...]
    serves: tuple[Answer, ...]
    bundle: tuple[Answer, ...] | None = None

    @property
    def well(self) -> bool:
        """Whether something can be served: the bundle, or were there one."""
        return any(answer.yes for answer in (self.serves if self.bundle is None else self.bundle))


def parser() -> argparse.ArgumentParser:
    """The flags; each one is a promise (tests/test_cli_options.py lists them)."""
    p = argparse.ArgumentParser(
        prog="bei-doctor",
        description="Say what can be compiled and served on this machine, and what is missing.",
    )
    p.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE", help="would this one be served here?")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)
    return report_errors("bei-doctor", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    bundle = None if args.bundle is None else open_bundle(args.bundle, verify=False)
    found = diagnose(bundle)
    if args.json:
        print(json.dumps(as_plain(found), indent=2))
    else:
        show(found, Console())
    return 0 if found.well else 1


def diagnose(bundle: Bundle | None = None) -> Diagnosis:
    """Look at everything."""
    machine = look()
    return Diagnosis(
        machine=machine,
        compiles=tuple(compiles(machine)),
        serves=tuple(serves(machine)),
        bundle=None if bundle is None else tuple(bundle_answers(bundle.manifest, machine)),
    )


def show(found: Diagnosis, console: Console) -> None:
    """The diagnosis as tables."""
    about = Table(title="This machine", title_justify="left", show_header=False)
    for name, value in _facts(found.machine):
        about.add_row(name, Text(value))
    console.print(about)
    console.print(_table("bei-compile builds here", found.compiles))
    console.print(_table("bei-serve runs here, given a bundle with it", found.serves))
    if found.bundle is not None:
        console.print(_table("of this bundle", found.bundle))


def _facts(machine: Machine) -> Iterator[tuple[str, str]]:
    yield "bei", f"{machine.bei}, Python {machine.python}, {machine.system}"
    memory = ""
    if machine.memory is not None and machine.memory_free is not None:
        memory = f", {size(machine.memory_free)} of {size(machine.memory)} free"
    yield "CPU", f"{machine.cpus} threads{memory}"
    if machine.gpus:
        yield "driver", f"{machine.driver or 'version not told'}, runs CUDA up to {machine.cuda}"
    for card in machine.gpus:
        free = "" if card.free is None else f"{size(card.free)} free of "
        yield f"GPU {card.index}", f"{card.name}, SM{card.sm}, {free}{size(card.memory)}"
    if machine.no_gpu is not None:
        yield "GPU", machine.no_gpu
    for name, version in machine.packages.items():
        yield name, version or "–"


def _table(title: str, answers: Iterable[Answer]) -> RenderableType:
    table = Table(title=title, title_justify="left", show_header=False, show_lines=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for answer in answers:
        mark = Text("✓", style="green") if answer.yes else Text("✗", style="bold red")
        said = Text(answer.said)
        if answer.remedy:
            said.append(f"\n→ {answer.remedy}", style="bold")
        table.add_row(mark, Text(answer.what), said)
    return table


def as_plain(found: Diagnosis) -> dict[str, Any]:
    """The diagnosis as JSON's types."""
    plain: dict[str, Any] = msgspec.to_builtins(found)
    return {**plain, "well": found.well}


if __name__ == "__main__":
    sys.exit(main())
