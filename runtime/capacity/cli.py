"""bei-plan: how many replicas of which device serve a load within a latency, at which token budget and cost.

    bei-plan minilm.bundle --measure
    bei-plan minilm.bundle --rate 500 --length-distribution lognormal:67,0.75 --p99 100

The engine's times are measured (--measure, on this machine) and kept beside the bundle; the scheduler that serves is then
run itself, in simulated time. Exit codes: 0 there is a plan; 1 no device keeps the promise; 2 the input is not usable.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from bei.command import report_errors
from bei.errors import InputError
from bei.manifest import EngineRecord, Manifest
from bei.runtime.batching import Budget
from bei.runtime.bundle import Bundle, read_bundle
from bei.runtime.capacity.curve import EngineCurve
from bei.runtime.capacity.plan import Option, Plan, option, ordered
from bei.runtime.capacity.prices import read_prices
from bei.runtime.capacity.search import REQUESTS, Promise, best, budget, budgets
from bei.runtime.capacity.simulation import ReplicaModel
from bei.runtime.capacity.store import (
    Curves,
    beside,
    engines_for,
    host_for,
    known_curves,
    read_curves,
    write_curves,
)
from bei.runtime.capacity.traffic import FORMS, Traffic, parse_lengths, parse_texts
from bei.runtime.tokenizer import open_tokenizer


def parser() -> argparse.ArgumentParser:
    """The flags; each one is a promise (tests/test_cli_options.py lists them)."""
    p = argparse.ArgumentParser(
        prog="bei-plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("bundle", help="folder written by bei-compile")
    load = p.add_argument_group("the load, and what is promised")
    load.add_argument("--rate", type=_positive, metavar="R", help="requests a second")
    load.add_argument("--length-distribution", metavar="D", help=f"tokens of a text: {FORMS}")
    load.add_argument("--p99", type=_positive, metavar="MS", help="99 of 100 requests are answered within it")
    load.add_argument(
        "--texts-per-request", default="1", metavar="N", help="or a distribution (default: %(default)s)"
    )
    load.add_argument(
        "--spare", type=_whole(0), default=0, metavar="N", help="replicas that may be lost (default: 0)"
    )
    load.add_argument("--seed", type=_whole(0), default=0, metavar="N", help="of the simulated load")
    devices = p.add_argument_group("devices")
    devices.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="NAME",
        help="cpu or a card such as H200; may be repeated (default: all with measured times)",
    )
    devices.add_argument(
        "--max-batch-tokens",
        type=_whole(1),
        action="append",
        default=[],
        metavar="N",
        help="a token budget to try; may be repeated (default: several)",
    )
    devices.add_argument(
        "--host-cores",
        type=_whole(1),
        metavar="N",
        help="CPU cores beside a GPU (default: as many as the machine that was measured has)",
    )
    devices.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="NAME=DOLLARS",
        help="an hour of a card, or of a machine (cpu)",
    )
    devices.add_argument("--prices", type=Path, metavar="FILE", help="the same in YAML, NAME: DOLLARS")
    times = p.add_argument_group("times")
    times.add_argument("--measure", action="store_true", help="measure on this machine first")
    times.add_argument(
        "--curves",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="measured times, from here or other machines; may be repeated (default: beside the bundle)",
    )
    times.add_argument("--target", help="engine to measure (default: the first that works here)")
    times.add_argument("--threads", type=_whole(1), metavar="N", help="CPU threads to measure with")
    times.add_argument(
        "--allow-unverified", action="store_true", help="measure an engine that did not pass parity"
    )
    p.add_argument("--json", action="store_true", help="print one JSON object")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)
    return report_errors("bei-plan", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    asked = [args.rate, args.length_distribution, args.p99]
    planning = any(value is not None for value in asked)
    if planning and None in asked:
        raise InputError("bei-plan: need --rate, --length-distribution and --p99 together.")
    if not planning and not args.measure:
        raise InputError(
            "bei-plan: nothing to do. Give --rate, --length-distribution and --p99, or --measure."
        )
    bundle = read_bundle(args.bundle)
    promise = _promise(args, bundle) if planning else None
    prices = read_prices(args.price, args.prices)
    curves = _curves(args, bundle)
    if promise is None:
        print(_measured(curves[0], args))
        return 0
    plan = _plan(args, bundle.manifest, promise, prices, curves)
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(plan), indent=2).decode())
    else:
        from rich.console import Console

        from bei.runtime.capacity.show import show

        show(plan, Console())
    return 0 if plan.feasible else 1


def _promise(args: argparse.Namespace, bundle: Bundle) -> Promise:
    limit = bundle.manifest.limits.max_length

    def count(texts: Sequence[str]) -> list[int]:
        return [len(row.ids) for row in open_tokenizer(bundle).encode(texts, max_length=sys.maxsize)]

    traffic = Traffic(
        rate=args.rate,
        lengths=parse_lengths(args.length_distribution, count),
        texts=parse_texts(args.texts_per_request),
        max_length=limit,
    )
    return Promise(traffic=traffic, p99=args.p99 / 1000, seed=args.seed, requests=REQUESTS)


def _curves(args: argparse.Namespace, bundle: Bundle) -> list[Curves]:
    """Those named, or the one beside the bundle, which is measured when it is not there yet; bei's own come last."""
    files = args.curves or [beside(bundle.path)]
    if args.measure or not (args.curves or files[0].exists()):
        if len(files) > 1:
            raise InputError("--measure: writes one file. Name one with --curves.")
        _measure(args, files[0])
    return [*(read_curves(file) for file in files), known_curves()]


def _measure(args: argparse.Namespace, file: Path) -> None:
    """Measure here and keep it in the file, in the place of what was measured on such a device before."""
    from bei.runtime.capacity.measure import measure_engine, measure_host
    from bei.runtime.model import load

    before = read_curves(file) if file.exists() else Curves()
    say = _say(f"measuring into {file} (the machine should do nothing else)")
    with load(
        args.bundle, target=args.target, threads=args.threads, allow_unverified=args.allow_unverified
    ) as model:
        found = before.updated(measure_engine(model, say), measure_host(model, say))
    write_curves(file, found)
    say("")


def _plan(
    args: argparse.Namespace,
    manifest: Manifest,
    promise: Promise,
    prices: dict[str, float],
    curves: Sequence[Curves],
) -> Plan:
    say = _say("simulating")
    options: list[Option] = []
    for curve in _chosen(engines_for(manifest, curves), args.device, manifest):
        host = host_for(curve, curves)
        if host is None:
            raise InputError(
                f"{curve.device}: nothing says what tokenizer and server take. Run bei-plan --measure there."
            )
        if args.host_cores is not None and curve.kind == "cuda":
            host = msgspec.structs.replace(host, cores=args.host_cores)
        record = next((one for one in manifest.engines if one.target == curve.target), None)
        models = [
            ReplicaModel(curve=curve, host=host, budget=one)
            for one in _budgets(args.max_batch_tokens, curve, manifest, record)
        ]
        answer = best(models, promise, say)
        options.append(option(answer, promise, prices=prices, in_bundle=record is not None, spare=args.spare))
    say("")
    return Plan(
        model=manifest.name,
        rate=args.rate,
        p99_ms=args.p99,
        lengths=promise.traffic.lengths.text,
        texts_per_request=args.texts_per_request,
        cut=promise.traffic.cut(seed=args.seed),
        seed=args.seed,
        options=ordered(options),
    )


def _chosen(found: Sequence[EngineCurve], names: Sequence[str], manifest: Manifest) -> list[EngineCurve]:
    """Those of the devices asked for. Raises InputError for one without measured times."""
    have = ", ".join(f"{one.card} ({one.device})" for one in found) or "none"
    for name in names:
        if not any(name.lower() in (one.card.lower(), one.device.lower()) for one in found):
            raise InputError(
                f"--device {name}: no times of {manifest.name} were measured there (have: {have}). Run "
                "bei-plan BUNDLE --measure --curves FILE on such a machine, and give --curves FILE here."
            )
    if not found:
        raise InputError(
            f"{manifest.name}: no measured times in the curves given. Run bei-plan BUNDLE --measure."
        )
    wanted = {name.lower() for name in names}
    return [one for one in found if not wanted or wanted & {one.card.lower(), one.device.lower()}]


def _budgets(
    asked: Sequence[int], curve: EngineCurve, manifest: Manifest, record: EngineRecord | None
) -> list[Budget]:
    for tokens in asked:
        most = min(curve.max_tokens, manifest.limits.max_batch_tokens)
        if tokens > most:
            raise InputError(
                f"--max-batch-tokens {tokens}: at most {most} on {curve.device} (measured there: {curve.max_tokens}, "
                f"limit of the bundle: {manifest.limits.max_batch_tokens})."
            )
    limits = manifest.limits
    return [budget(curve, limits, record, one) for one in asked] or budgets(curve, limits, record)


def _measured(curves: Curves, args: argparse.Namespace) -> str:
    if args.json:
        return msgspec.json.format(msgspec.json.encode(curves), indent=2).decode()
    return "\n".join(
        f"{one.device}, {one.target}: {len({(point.length, point.tokens) for point in one.points})} sizes, at best "
        f"{max(point.calls * point.tokens / point.seconds for point in one.points):,.0f} tokens/s"
        for one in curves.engines
    )


def _say(what: str) -> Callable[[str], None]:
    """A line on a terminal that is written over, and taken away by an empty one; elsewhere nothing."""
    if not sys.stderr.isatty():
        return lambda text: None
    return lambda text: print(
        f"\r\033[K{what}: {text}" if text else "\r\033[K", end="", file=sys.stderr, flush=True
    )


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"got {text!r}, need a number above 0")
    return value


def _whole(low: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"got {text!r}, need a whole number, at least {low}")
        return int(text)

    return read


if __name__ == "__main__":
    sys.exit(main())
