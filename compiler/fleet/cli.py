"""bei-compile --zoo: a line for each bundle as it is done, then one table or one JSON object."""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from bei.cards import card
from bei.compiler.cache.cache import open_cache
from bei.compiler.engines.build import check_buildable
from bei.compiler.fleet.cells import Cell, Outcome, options_for
from bei.compiler.fleet.machines import check_workers, machine_for
from bei.compiler.fleet.run import Fleet, FleetOptions, compile_fleet
from bei.compiler.options import BuildOptions, targets_of
from bei.compiler.planning.gate import check_card
from bei.errors import InputError
from bei.runtime.cpu import usable_cpus

COLOURS: Mapping[Outcome, str] = {"built": "green", "cached": "green", "kept": "dim", "failed": "bold red"}
WORDS: Mapping[Outcome, str] = {
    "built": "built",
    "cached": "from the cache",
    "kept": "there already",
    "failed": "failed",
}
COLUMNS = ("model", "target", "weights", "bundle", "parity", "size", "seconds")
WIDTH = 160
"""Columns where the output is no terminal, such as a CI log."""


def run_zoo(args: argparse.Namespace, build: BuildOptions) -> int:
    """Exit code as for a single build, of the worst cell. Raises BeiError where nothing could be tried."""
    options = _options(args, build)
    check_workers(args.workers, args.ray)
    if args.ray is None:  # else the nodes must, and say so
        check_buildable(options.targets)
        _check_parity(options)
    console = Console(stderr=True, soft_wrap=True, quiet=args.json)
    workers = args.workers or usable_cpus()
    machine = machine_for(workers=workers, ray=args.ray, fresh=True)
    fleet = compile_fleet(options, machine, lambda cell: _tell(cell, console))
    if args.json:
        print(msgspec.json.encode(fleet).decode())
    else:
        show_fleet(fleet, options.out, Console(width=None if sys.stdout.isatty() else WIDTH))
    return fleet.exit_code


def _options(args: argparse.Namespace, build: BuildOptions) -> FleetOptions:
    without = ("repo", "revision", "config", "plan", "policy", "timing_cache")
    given = [f"--{name.replace('_', '-')}" for name in without if getattr(args, name)]
    if given:
        raise InputError(f"bei-compile: {', '.join(given)}: about one model. Leave it out with --zoo.")
    targets = targets_of(replace(build, targets=tuple(dict.fromkeys(build.targets))))
    if build.card is not None and all(options_for(target, build).card is None for target in targets):
        check_card((), card(build.card))
    if build.calibration is not None:
        build = replace(build, calibration=build.calibration.absolute())
    return FleetOptions(
        zoo=args.zoo,
        only=args.only or "*",
        targets=targets,
        out=args.out or Path(f"{args.zoo.stem}.bundles"),
        build=build,
        weights_dir=args.weights,
        certified=not args.no_parity,
        cache=None if args.cache is None else open_cache(args.cache).place.uri,
    )


def _check_parity(options: FleetOptions) -> None:
    """Without the extra that parity needs, the user hears it before anything is built."""
    if options.certified:
        from bei.compiler.parity.certificate import certifier

        certifier()


def _tell(cell: Cell, console: Console) -> None:
    what = f"[{COLOURS[cell.outcome]}]{WORDS[cell.outcome]}[/]"
    seconds = f"[dim]{cell.seconds:.1f} s[/]"
    console.print(f"{what}  {escape(cell.repo)}  {cell.target}  {seconds}", highlight=False)
    for warning in cell.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)


def show_fleet(fleet: Fleet, out: Path, console: Console) -> None:
    """A table, the reasons of those that failed, and the sum."""
    table = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        right = name in ("size", "seconds")
        table.add_column(name, no_wrap=name in ("model", "target"), justify="right" if right else "left")
    for cell in fleet.cells:
        size = "–" if cell.size is None else decimal(cell.size)
        state = f"[{COLOURS[cell.outcome]}]{WORDS[cell.outcome]}[/]"
        facts = (cell.repo, cell.target, cell.weights, state, cell.verdict or "–", size)
        table.add_row(*facts, f"{cell.seconds:.1f}")
    console.print(table)
    for cell in fleet.cells:
        if cell.reason is not None:
            reason = f"{escape(cell.repo)}, {cell.target}: {escape(cell.reason)}"
            console.print(reason, highlight=False, soft_wrap=True)
    count = Counter(cell.outcome for cell in fleet.cells)
    parts = ", ".join(f"{count[outcome]} {word}" for outcome, word in WORDS.items() if count[outcome])
    console.print(f"{out}: {len(fleet.cells)} bundles: {parts}", highlight=False, soft_wrap=True)
