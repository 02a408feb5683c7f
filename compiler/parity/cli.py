"""bei-parity: a bundle's engines against Hugging Face, on built-in texts or on the user's own.

Exit codes: 0 every engine that ran passed; 1 one did not; 2 the input is not usable, or nothing could run here.
The bundle's certificate is updated in place; ``--json`` and ``--html`` write copies. ``--runner polygraphy`` checks the
engines without this project's executors, and leaves the certificate, which is about both, as it is. With ``--zoo`` every model of a zoo
file is compiled for the CPU and checked; 1 then means that one did not pass. Rows that passed are kept in ``--json``, and
another run with the same file measures the others.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bei.command import NOTHING_LEFT, report_errors
from bei.compiler.cli import add_zoo_flags
from bei.compiler.parity import polygraphy_runner
from bei.compiler.parity.bundles import (
    Texts,
    builtin_texts,
    check_bundle,
    checkpoint_of,
    require_source,
)
from bei.compiler.parity.certificate import certify, discard_damaged
from bei.compiler.parity.html import render
from bei.compiler.parity.matrix_cli import run_zoo, write_copies
from bei.compiler.parity.numbers import bound, number
from bei.compiler.parity.report import EngineReport, Measure, ParityReport, encode_report
from bei.compiler.parity.text_files import read_texts
from bei.compiler.progress import Progress, for_stderr
from bei.errors import ParityError
from bei.runtime.bundle import Bundle, open_bundle
from bei.runtime.executors import registry

MARKS = {True: "[green]✓[/]", False: "[bold red]✗[/]", None: ""}
RUNNERS: dict[str, registry.Backend] = {"bei": registry, "polygraphy": polygraphy_runner}
COLOURS = {"passed": "green", "failed": "bold red", "not run": "yellow"}


def parser() -> argparse.ArgumentParser:
    """The flags; each one is a promise (tests/test_cli_options.py lists them)."""
    p = argparse.ArgumentParser(prog="bei-parity", description="Hold a bundle's engines to Hugging Face.")
    p.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE", help="the folder that bei-compile wrote")
    p.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="default: the one inside the bundle")
    p.add_argument("--texts", type=Path, metavar="FILE", help="your own texts: txt, jsonl, csv or parquet")
    p.add_argument("--full", action="store_true", help="more of the built-in texts")
    p.add_argument("--target", action="append", default=[], help="repeatable; default: all that run here")
    p.add_argument(
        "--runner",
        choices=tuple(RUNNERS),
        default="bei",
        help="what runs the engines (default: %(default)s); polygraphy is a cross-check by NVIDIA's tool (ONNX Runtime on "
        "the CPU, TensorRT and TensorRT-RTX plans; needs bei[polygraphy]) that changes no certificate",
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="write a copy of the report")
    p.add_argument("--html", type=Path, metavar="FILE", help="write a copy of the page")
    add_zoo_flags(p, instead_of="a bundle", workers="processes (default 1)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)
    left = "the rows so far are kept" if args.zoo is not None and args.json is not None else NOTHING_LEFT
    return report_errors("bei-parity", lambda: _run(args) if args.zoo is None else run_zoo(args), left)


def _run(args: argparse.Namespace) -> int:
    if args.bundle is None or args.only or args.weights or args.workers is not None or args.ray is not None:
        raise ParityError(
            "bei-parity: need a BUNDLE, or --zoo with --only, --weights, --workers, --ray. See bei-parity --help."
        )
    progress = for_stderr()
    if discard_damaged(args.bundle):
        Console(stderr=True).print("[yellow]warning:[/] the old certificate was damaged and is replaced")
    bundle = open_bundle(args.bundle)
    texts = _texts(args, bundle)
    with ExitStack() as stack:
        checkpoint = _checkpoint(args.checkpoint, bundle, stack, progress)
        report = check_bundle(
            bundle, checkpoint, texts, targets=args.target, runner=RUNNERS[args.runner], progress=progress
        )
    if args.runner == "bei":
        certify(bundle.path, report)
    write_copies(args.json, encode_report(report), args.html, render(report))
    show(report, Console())
    if report.verdict == "not run":
        raise ParityError(f"{bundle.path}: none of the engines asked for runs on this machine.")
    return 1 if report.verdict == "failed" else 0


def _texts(args: argparse.Namespace, bundle: Bundle) -> Texts:
    if args.texts is None:
        return builtin_texts(bundle.manifest, full=args.full)
    if args.full:
        raise ParityError("bei-parity: --full is about the built-in texts. Leave out --full or --texts.")
    return Texts(source=args.texts.name, samples=read_texts(args.texts))


def _checkpoint(given: Path | None, bundle: Bundle, stack: ExitStack, progress: Progress) -> Path:
    if given is None:
        return stack.enter_context(checkpoint_of(bundle))
    require_source(given, bundle.manifest, progress)
    return given


def show(report: ParityReport, console: Console) -> None:
    """The report as tables, one an engine."""
    for engine in report.engines:
        console.print(f"\n[bold]{escape(engine.target)}[/]  [{COLOURS[engine.verdict]}]{engine.verdict}[/]")
        console.print(escape(circumstances(report, engine)), style="dim", highlight=False, soft_wrap=True)
        if engine.measures:
            console.print(_table(engine.measures))
        _show_worst(engine, console)
        for rung in engine.rungs:
            console.print(f"[{COLOURS[rung.verdict]}]{rung.verdict}[/]  {escape(rung.name)}", highlight=False)
        if engine.drift is not None and engine.drift.first is not None:
            console.print(f"the first layer to drift is {escape(engine.drift.first)}", highlight=False)


def circumstances(report: ParityReport, engine: EngineReport) -> str:
    """Who was compared with whom, on what."""
    if engine.texts is None or engine.reference is None:
        return engine.reason or ""
    t, r = engine.texts, engine.reference
    said = (
        f"{report.model}, {report.task}, {engine.precision} on {engine.device}; reference {r.name}; "
        f"{t.count} texts ({t.source}), {t.tokens} tokens, longest {t.longest}"
    )
    return said if engine.reason is None else f"{said}\n{engine.reason}"


def _table(measures: Sequence[Measure]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for justify in ("left", "right", "left", "left"):
        table.add_column(justify=justify)
    for m in measures:
        table.add_row(m.meaning, number(m.value), bound(m.threshold), MARKS[m.passed])
    return table


def _show_worst(engine: EngineReport, console: Console) -> None:
    if not engine.worst:
        return
    row = engine.worst[0]
    far = "NaN or Inf" if row.distance is None else f"{engine.distance} {number(row.distance)}"
    text = " / ".join(repr(part[:60]) for part in (row.text, row.pair) if part is not None)
    said = f"worst text: {text} ({row.kind}, {row.tokens} tokens): {far}"
    console.print(escape(said), style="dim", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
