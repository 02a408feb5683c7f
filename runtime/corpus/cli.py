"""bei-embed: a corpus through a bundle, into Parquet.

Exit codes: 0 every row is done; 1 done, but some rows could not be processed (failed-*.jsonl beside the output says
which and why); 2 the input is not usable; 130 interrupted. A job that was stopped goes on where it was when the same
command is run again.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import msgspec

from bei.command import report_errors
from bei.errors import InputError

if TYPE_CHECKING:
    from bei.runtime.corpus.prepare import Asked
    from bei.runtime.corpus.run import OpenMachine, Summary

FORMATS = ("text", "jsonl", "csv", "tsv", "parquet", "arrow")
DTYPES = ("float32", "float16", "int8", "binary")


def parser() -> argparse.ArgumentParser:
    """The flags; each one is a promise (tests/test_cli_options.py lists them)."""
    p = argparse.ArgumentParser(
        prog="bei-embed", description="Embed (or rerank, classify, tag) a corpus with a bundle."
    )
    p.add_argument("bundle", metavar="BUNDLE", help="folder written by bei-compile")
    p.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="files, globs, folders or URIs: Parquet, JSON lines, CSV, text, Arrow, datasets saved to disk",
    )
    p.add_argument(
        "--out", required=True, metavar="DIR", help="a folder or URI for part-*.parquet and job.json"
    )
    p.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME",
        help="column of the texts (default: text; twice for pairs, default: query, document)",
    )
    p.add_argument("--id-column", metavar="NAME", help="default: rows are numbered from 0")
    p.add_argument("--format", choices=FORMATS, help="of all inputs (default: by their names)")
    p.add_argument(
        "--prompt-name", metavar="NAME", help="which of the bundle's prompts goes before each text"
    )
    p.add_argument("--dimensions", type=_positive, metavar="N", help="keep a prefix of each vector")
    p.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of the vectors; int8 in ranges of a sample, which the files name (default: %(default)s)",
    )
    p.add_argument(
        "--shard-rows",
        type=_positive,
        default=16384,
        metavar="N",
        help="rows of one file (default: %(default)s)",
    )
    p.add_argument("--target", help="engine to run (default: the first of the bundle's that works here)")
    p.add_argument("--threads", type=_positive, help="CPU threads (default: all this process may use)")
    p.add_argument("--allow-unverified", action="store_true", help="run an engine that did not pass parity")
    p.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="work on a Ray cluster (without an address: the one this machine belongs to, or itself)",
    )
    p.add_argument(
        "--actors", type=_positive, metavar="N", help="with --ray (default: all there is room for)"
    )
    p.add_argument("--actor-gpus", type=float, default=0.0, metavar="N", help="with --ray (default: 0)")
    p.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)
    return report_errors("bei-embed", lambda: _run(args), "run the same command again to go on")


def _run(args: argparse.Namespace) -> int:
    if find_spec("pyarrow") is None:
        raise InputError("bei-embed: needs pyarrow, which is not installed. Run: pip install 'bei[embed]'.")
    from bei.runtime.corpus.run import run_job

    summary = run_job(_asked(args), _machine(args), quiet=args.json)
    print(msgspec.json.encode(summary).decode() if args.json else _text(summary))
    return 1 if summary.failed else 0


def _machine(args: argparse.Namespace) -> "OpenMachine":
    """Where the work is done. Raises InputError for options of Ray without it."""
    from bei.runtime.corpus.run import LoadOptions, here

    options = LoadOptions(threads=args.threads, allow_unverified=args.allow_unverified)
    if args.ray is None:
        if args.actors is not None or args.actor_gpus:
            raise InputError("--actors, --actor-gpus: they go with --ray.")
        return partial(here, args.bundle, options)
    from bei.runtime.corpus.ray_data import RayOptions, cluster

    ray = RayOptions(address=args.ray or None, actors=args.actors, gpus=args.actor_gpus)
    return partial(cluster, args.bundle, options, ray)


def _asked(args: argparse.Namespace) -> "Asked":
    """The arguments, held against the bundle and the inputs. Raises BeiError."""
    from bei.runtime.bundle import read_bundle
    from bei.runtime.corpus.inputs import find_inputs
    from bei.runtime.corpus.job import Options
    from bei.runtime.corpus.prepare import Asked, check_options, columns_for
    from bei.runtime.corpus.storage import locate

    bundle = read_bundle(args.bundle)
    head = bundle.manifest.head
    whole = head.task == "embed" and args.dimensions == head.dimensions
    if args.target is not None:
        bundle.manifest.engine(args.target)
    options = Options(
        columns=columns_for(head.task, args.column),
        id_column=args.id_column,
        prompt_name=args.prompt_name,
        dimensions=None if whole else args.dimensions,
        dtype=args.dtype,
        shard_rows=args.shard_rows,
    )
    check_options(bundle.manifest, options)
    inputs = find_inputs(args.inputs, args.format)
    return Asked(bundle=bundle, out=locate(args.out), inputs=inputs, options=options, target=args.target)


def _text(summary: "Summary") -> str:
    rows = f"{summary.written:,} of {summary.rows:,} rows by {summary.model} ({summary.target})"
    lines = [f"{summary.out}: {rows} in {summary.shards:,} files"]
    if summary.failed:
        lines.append(f"  {summary.failed:,} rows could not be processed: see {summary.out}/failed-*.jsonl")
    if summary.done_before:
        lines.append(f"  {summary.done_before:,} rows were done before")
    if summary.texts_per_second is not None:
        speeds = [f"{summary.texts_per_second:,.0f} texts/s"]
        if summary.tokens_per_second is not None:
            speeds.append(f"{summary.tokens_per_second:,.0f} tokens/s")
        lines.append(f"  {summary.seconds:,.1f} s, {', '.join(speeds)}")
    return "\n".join(lines)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, need a whole number, at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
