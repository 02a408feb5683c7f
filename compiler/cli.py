"""bei-compile: a checkpoint in, a bundle out; with ``--zoo`` the bundles of every model for every target.

Exit codes: 0 done; 1 built, but the parity gate failed (the bundle is kept and marked); 2 the input is not usable;
130 interrupted. Messages go to standard error, one for each failure; ``--json`` prints one object on standard output.
With ``--zoo`` the worst of all; the others are done all the same, and another run goes on with what is missing.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape

from bei.command import NOTHING_LEFT, report_errors
from bei.compiler.build import Certify, compile_bundle, plan_build
from bei.compiler.cache.cache import Compiled, compile_request, open_cache
from bei.compiler.cache.request import request_of
from bei.compiler.engines.portability import HARDWARE_COST, LEVELS, VERSION_COST, Portability
from bei.compiler.options import BuildOptions
from bei.compiler.planning.show import as_json, show, surprises
from bei.compiler.progress import Progress, for_stderr
from bei.compiler.truss import TrussRequest, read_truss
from bei.errors import InputError


def parser() -> argparse.ArgumentParser:
    """The flags; each one is a promise (tests/test_cli_options.py lists them)."""
    p = argparse.ArgumentParser(
        prog="bei-compile", description="Compile an encoder checkpoint into a bundle."
    )
    p.add_argument("--repo", metavar="REPO|DIR", help="a Hub repository or a local folder")
    p.add_argument("--revision", help="branch, tag, commit or refs/pr/N of a Hub repository")
    p.add_argument(
        "--config", type=Path, metavar="FILE", help="a Baseten Truss config.yaml instead of --repo"
    )
    p.add_argument(
        "--target", action="append", default=[], help="repeatable; default: all this machine can build"
    )
    p.add_argument(
        "--targets", action="extend", dest="target", type=_listed, metavar="T1,T2", help="several at once"
    )
    p.add_argument(
        "--token-embeddings",
        action="store_true",
        help="a vector for each token (the last hidden state) instead of one a text",
    )
    p.add_argument("--layout", choices=("padded", "packed"), default="padded", help="of GPU engines")
    p.add_argument("--out", type=Path, metavar="DIR", help="default: <name>.bundle, or <zoo>.bundles")
    p.add_argument(
        "--max-length", type=_positive, help="tokens of one text (default: what the checkpoint serves)"
    )
    p.add_argument("--max-batch-tokens", type=_positive, help="tokens of one engine call (default 16384)")
    p.add_argument("--max-batch", type=_positive, help="texts of one engine call (default 256)")
    p.add_argument(
        "--precision", choices=("auto", "fp16", "bf16", "fp32"), default="auto", help="of GPU engines"
    )
    p.add_argument("--policy", type=Path, metavar="FILE", help="a hand-written precision policy (JSON)")
    p.add_argument(
        "--calibration", type=Path, metavar="FILE", help="texts for the range audit (default: built in)"
    )
    p.add_argument(
        "--no-parity", action="store_true", help="do not compare with Hugging Face (marks it unverified)"
    )
    p.add_argument(
        "--plan", action="store_true", help="print the memory of every engine and stop before building"
    )
    p.add_argument("--card", metavar="NAME", help="a GPU that the engines must fit, such as L4 or H100")
    p.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="of TensorRT: read, updated, makes the next build faster",
    )
    p.add_argument(
        "--hardware-compatibility",
        choices=tuple(LEVELS),
        default="none",
        help="of TensorRT plans: run on every GPU of the same SM, or on every one from SM80 on but Jetson. "
        + " ".join(f"{level}: {cost}." for level, cost in HARDWARE_COST.items()),
    )
    p.add_argument(
        "--version-compatible",
        action="store_true",
        help=f"of TensorRT plans: later versions of TensorRT read it. Cost: {VERSION_COST}.",
    )
    p.add_argument(
        "--cache",
        metavar="DIR|URI",
        help="of finished bundles: what is in it is not built again (needs bei[embed])",
    )
    add_zoo_flags(p, instead_of="--repo", workers="builds at a time (default: a CPU each)")
    p.add_argument("--offline", action="store_true", help="use the Hub cache only")
    p.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return p


def add_zoo_flags(p: argparse.ArgumentParser, *, instead_of: str, workers: str) -> None:
    """What says which models of a zoo file, and where the work is done."""
    p.add_argument(
        "--zoo", type=Path, metavar="FILE", help=f"every model of a zoo file instead of {instead_of}"
    )
    p.add_argument("--only", metavar="GLOB", help="with --zoo: the models whose owner/name matches")
    p.add_argument("--weights", type=Path, metavar="DIR", help="with --zoo: real weights, in owner--name")
    p.add_argument("--workers", type=int, metavar="N", help=f"with --zoo: {workers}")
    p.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="with --zoo: on a Ray cluster (without an address: the one this machine belongs to, or itself)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)
    left = NOTHING_LEFT if args.zoo is None else "what is done is kept; the same command goes on from there"
    return report_errors("bei-compile", lambda: _run(args), left)


def _run(args: argparse.Namespace) -> int:
    if args.zoo is not None:
        from bei.compiler.fleet.cli import run_zoo

        return run_zoo(args, _build_options(args, None))
    if args.only or args.weights or args.workers is not None or args.ray is not None:
        raise InputError("bei-compile: --only, --weights, --workers and --ray go with --zoo.")
    options, warnings = _options(args)
    for warning in warnings:
        _warn(warning)
    progress = for_stderr(quiet=args.json)
    if args.plan:
        return _plan(options, progress, json_wanted=args.json)
    certify = None if args.no_parity else _certifier(progress)
    started = time.perf_counter()
    compiled = _compiled(options, args.cache, progress, certify)
    for warning in surprises(compiled.manifest):
        _warn(warning)
    result = _result(compiled, time.perf_counter() - started)
    print(json.dumps(result) if args.json else _summary(result))
    return 1 if "failed" in compiled.manifest.parity.verdicts.values() else 0


def _compiled(
    options: BuildOptions, cache: str | None, progress: Progress, certify: Certify | None
) -> Compiled:
    if cache is not None:
        place = open_cache(cache)
        request = request_of(options, certified=certify is not None, progress=progress)
        return compile_request(request, place, progress=progress, certify=certify, warn=_warn)
    out, manifest = compile_bundle(options, progress=progress, certify=certify)
    return Compiled(out=out, manifest=manifest, cached=False)


def _warn(warning: str) -> None:
    Console(stderr=True, soft_wrap=True).print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)


def _plan(options: BuildOptions, progress: Progress, *, json_wanted: bool) -> int:
    plans, unplanned = plan_build(options, progress)
    if json_wanted:
        print(json.dumps(as_json(plans, unplanned)))
    else:
        show(plans, unplanned, Console())
    return 0


def _options(args: argparse.Namespace) -> tuple[BuildOptions, tuple[str, ...]]:
    """From flags, or from a Truss config with flags on top."""
    if (args.repo is None) == (args.config is None):
        raise InputError("bei-compile: need either --repo or --config. See bei-compile --help.")
    truss: TrussRequest | None = None if args.config is None else read_truss(args.config)
    return _build_options(args, truss), truss.warnings if truss else ()


def _build_options(args: argparse.Namespace, truss: TrussRequest | None) -> BuildOptions:
    options = BuildOptions(
        repo=(truss.repo if truss else args.repo) or "",
        revision=args.revision or (truss.revision if truss else None),
        out=args.out,
        targets=tuple(args.target),
        max_length=args.max_length,
        layout=args.layout,
        precision=args.precision,
        policy=args.policy,
        calibration=args.calibration,
        offline=args.offline,
        card=args.card,
        timing_cache=args.timing_cache,
        portability=Portability(
            hardware=args.hardware_compatibility, version_compatible=args.version_compatible
        ),
        token_embeddings=args.token_embeddings,
    )
    tokens = args.max_batch_tokens or (truss.max_batch_tokens if truss else None)
    rows = args.max_batch or (truss.max_batch if truss else None)
    return replace(
        options,
        max_batch_tokens=tokens or options.max_batch_tokens,
        max_batch=rows or options.max_batch,
    )


def _certifier(progress: Progress) -> Certify:
    """Parity needs torch and transformers: without them the user hears it before anything is built."""
    from bei.compiler.parity.certificate import certifier

    return certifier(progress)


def _result(compiled: Compiled, seconds: float) -> dict[str, Any]:
    manifest = compiled.manifest
    return {
        "bundle": str(compiled.out),
        "name": manifest.name,
        "task": manifest.head.task,
        "dimensions": manifest.head.dimensions,
        "source": {"repo": manifest.source.repo, "revision": manifest.source.revision},
        "engines": [msgspec.to_builtins(engine) for engine in manifest.engines],
        "parity": msgspec.to_builtins(manifest.parity),
        "cached": compiled.cached,
        "seconds": round(seconds, 2),
    }


def _summary(result: dict[str, Any]) -> str:
    how = " from the cache" if result["cached"] else ""
    lines = [f"{result['bundle']}: {result['name']}, {result['task']}, {result['seconds']} s{how}"]
    verdicts = result["parity"]["verdicts"]
    lines += [f"  {e['target']}: {e['status']}, parity {verdicts[e['target']]}" for e in result["engines"]]
    return "\n".join(lines)


def _listed(text: str) -> list[str]:
    names = [name for part in text.split(",") if (name := part.strip())]
    if not names:
        raise argparse.ArgumentTypeError("need at least one target")
    return names


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"need a positive number, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
