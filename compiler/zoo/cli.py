"""bei-zoo: the checkpoints whose layout is known, and stand-ins for them.

bei-zoo list
bei-zoo fixture REPO --out DIR [--revision REV] [--full-width] [--layers N|all] [--seed S] [--sparse]

Exit codes: 0 done; 2 the input is not usable; 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.filesize import decimal

from bei.command import report_errors
from bei.compiler.zoo.fact_files import CheckpointFacts, facts_of, load_facts
from bei.compiler.zoo.fixture import FixtureOptions, real_size, write_fixture
from bei.compiler.zoo.shapes import dimensions

Layers = int | Literal["all"] | None


def parser() -> argparse.ArgumentParser:
    """The commands and flags; each one is a promise (tests/test_cli_options.py lists them)."""
    p = argparse.ArgumentParser(prog="bei-zoo", description="Known checkpoints, and stand-ins for them.")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="print the checkpoints whose layout is known")
    f = commands.add_parser("fixture", help="write a folder like the Hub's, with random weights")
    f.add_argument("repo", metavar="REPO", help="a repository that `bei-zoo list` prints")
    f.add_argument("--out", type=Path, required=True, metavar="DIR", help="must not exist, or be empty")
    f.add_argument("--revision", help="another revision than the zoo's, where its layout is known")
    f.add_argument("--full-width", action="store_true", help="the real sizes (default: reduced)")
    f.add_argument(
        "--layers", type=_layers, metavar="N|all", help="default: as few as show every kind of layer"
    )
    f.add_argument("--seed", type=int, default=0, help="of the random weights (default 0)")
    f.add_argument("--sparse", action="store_true", help="weights read as zeros and take no disk space")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)
    return report_errors("bei-zoo", _list if args.command == "list" else lambda: _fixture(args))


def _list() -> int:
    for facts in load_facts().values():
        kind, size = facts.config["model_type"], decimal(real_size(facts))
        print(f"{facts.repo:48} {kind:14} {_depth(facts):3} layers  {facts.dtype:4} {size:>8}")
    return 0


def _fixture(args: argparse.Namespace) -> int:
    facts = facts_of(args.repo, args.revision)
    options = FixtureOptions(
        full_width=args.full_width,
        layers=_depth(facts) if args.layers == "all" else args.layers,
        seed=args.seed,
        sparse=args.sparse,
    )
    plan = write_fixture(facts, args.out, options)
    sizes = dimensions(plan.config)
    print(
        f"{args.out}: stand-in for {facts.repo}, {sizes['L']} of {_depth(facts)} layers, hidden size {sizes['D']}, "
        f"{len(plan.tensors)} tensors, {decimal(plan.nbytes)}"
    )
    return 0


def _depth(facts: CheckpointFacts) -> int:
    return dimensions(facts.config)["L"]


def _layers(text: str) -> Layers:
    if text == "all":
        return "all"
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"need a positive number or all, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
