"""`bei-serve BUNDLE…`: serve bundles over HTTP until a signal, then finish what was accepted and exit 0.

API keys come from the environment variable BEI_API_KEYS (separated by commas or spaces) or from --api-key-file.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bei.command import report_errors
from bei.errors import BeiError
from bei.runtime.cold_start import ColdStart
from bei.runtime.http.protocol import ConnectionLimits
from bei.runtime.http.settings import DRAIN_SECONDS, Settings
from bei.runtime.keys import find_keys
from bei.runtime.listen import bind, check_certificate
from bei.runtime.pace import HANG_SECONDS
from bei.runtime.prompts import read_prompts
from bei.runtime.serve import Engines, Options, ServedAs, serve


def main(argv: Sequence[str] | None = None) -> int:
    """0 after a clean stop; 2 and one message when a bundle, an option or the address is not usable."""
    start = ColdStart()
    start.reached("imported")
    args = parser().parse_args(argv)
    return report_errors("bei-serve", lambda: _run(args, start))


def _run(args: argparse.Namespace, start: ColdStart) -> int:
    bundles, engines, options = _bundles(args), _engines(args), _options(args)
    with contextlib.closing(bind(args.host, args.port)) as listener:
        serve(bundles, engines, options, listener, start)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bei-serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "bundle", nargs="+", help="folder written by bei-compile; several are served side by side"
    )
    _add_models(parser.add_argument_group("models and engines"))
    _add_network(parser.add_argument_group("network"))
    _add_limits(parser.add_argument_group("limits"))
    _add_observation(parser.add_argument_group("observation"))
    return parser


def _add_models(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--served-model-name",
        metavar="NAME",
        action="append",
        default=[],
        help="name in answers (default: the bundle's); with several bundles once for each, in their order",
    )
    group.add_argument(
        "--prompts",
        metavar="FILE",
        action="append",
        default=[],
        help="prompts by name beside the bundle's own, and the default one, as in sentence-transformers' config file: "
        '{"prompts": {NAME: TEXT}, "default_prompt_name": NAME}; with several bundles once for each, "" for none',
    )
    group.add_argument(
        "--strict-model-name",
        action="store_true",
        help="answer 404 to a request that names another model (default: with one model any name will do)",
    )
    group.add_argument(
        "--normalize",
        choices=("model", "always"),
        default="model",
        help="unit length on OpenAI's routes: as the model says, or always (default: %(default)s)",
    )
    group.add_argument("--target", help="engine to run (default: the first of the bundle's that works here)")
    group.add_argument("--threads", type=_whole(1), help="CPU threads (default: all this process may use)")
    group.add_argument(
        "--devices",
        type=_devices,
        default=(0,),
        metavar="0,1,…",
        help="GPUs, with a replica of every engine on each (default: 0)",
    )
    group.add_argument(
        "--replicas",
        type=_whole(1, 64),
        default=1,
        metavar="N",
        help="replicas of an engine on each device; on the CPU they share the threads (default: %(default)s)",
    )
    group.add_argument(
        "--max-batch-tokens",
        type=_whole(1),
        metavar="N",
        help="tokens of one engine call, padding included (default: as measured for the engine; bei-plan finds the best)",
    )
    group.add_argument("--allow-unverified", action="store_true", help="run engines that did not pass parity")


def _add_network(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    group.add_argument(
        "--port", type=_whole(0, 65535), default=8080, help="0 takes a free one (default: %(default)s)"
    )
    group.add_argument(
        "--tls-cert", type=Path, metavar="FILE", help="serve HTTPS with this certificate (PEM)"
    )
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="and this key (PEM, not encrypted)")
    group.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="accepted API keys, one a line; read again on SIGHUP (default: BEI_API_KEYS, else no keys are asked for)",
    )
    group.add_argument(
        "--cors-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="let browsers call from pages of this origin, * for all; may be repeated (default: none)",
    )


def _add_limits(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--max-queue-tokens",
        type=_whole(1),
        default=1 << 20,
        metavar="N",
        help="tokens that may wait, for each bundle, before requests are refused with 429 (default: %(default)s)",
    )
    group.add_argument(
        "--max-body-bytes",
        type=_whole(1),
        default=Settings().max_body_bytes,
        metavar="N",
        help="size of a request's body, compressed or not (default: %(default)s)",
    )
    group.add_argument(
        "--max-connections",
        type=_whole(1),
        default=ConnectionLimits().connections,
        metavar="N",
        help="open connections (default: %(default)s)",
    )
    group.add_argument(
        "--hang-seconds",
        type=_whole(1),
        default=int(HANG_SECONDS),
        metavar="N",
        help="an engine that runs one batch this long, and 50 times longer than usual, is given up (default: %(default)s)",
    )
    group.add_argument(
        "--drain-seconds",
        type=_whole(0),
        default=DRAIN_SECONDS,
        metavar="N",
        help="time to finish accepted requests after a signal (default: %(default)s)",
    )


def _add_observation(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--access-log", action="store_true", help="one JSON line a request, without texts")
    group.add_argument(
        "--otlp-endpoint", metavar="URL", help="send traces to this OTLP/HTTP collector (needs bei[otel])"
    )


def _bundles(args: argparse.Namespace) -> dict[str, ServedAs]:
    """What to serve, by folder. Raises BeiError."""
    names = _of_each("--served-model-name", args.served_model_name, args.bundle)
    files = _of_each("--prompts", args.prompts, args.bundle)
    if len(set(args.bundle)) < len(args.bundle):
        raise BeiError(
            "bundles: the same folder is given twice. Use --replicas for several engines of one bundle."
        )
    return {path: _served_as(name, file) for path, name, file in zip(args.bundle, names, files, strict=True)}


def _of_each(option: str, given: list[str], bundles: list[str]) -> list[str]:
    """An option's value for every bundle, "" where it was not given at all. Raises BeiError."""
    if given and len(given) != len(bundles):
        raise BeiError(
            f"{option}: given {len(given)} times for {len(bundles)} bundles. Give one for each, or none."
        )
    return given or [""] * len(bundles)


def _served_as(name: str, file: str) -> ServedAs:
    if not file:
        return ServedAs(name=name)
    told = read_prompts(Path(file))
    return ServedAs(name=name, prompts=told.prompts, default_prompt=told.default_prompt_name)


def _engines(args: argparse.Namespace) -> Engines:
    return Engines(
        target=args.target,
        threads=args.threads,
        devices=args.devices,
        replicas=args.replicas,
        max_batch_tokens=args.max_batch_tokens,
        allow_unverified=args.allow_unverified,
    )


def _options(args: argparse.Namespace) -> Options:
    """Raises BeiError for files that cannot be used."""
    check_certificate(args.tls_cert, args.tls_key)
    return Options(
        settings=Settings(
            max_body_bytes=args.max_body_bytes,
            drain_seconds=args.drain_seconds,
            strict_model_name=args.strict_model_name,
            always_normalize=args.normalize == "always",
        ),
        limits=ConnectionLimits(connections=args.max_connections),
        max_queue_tokens=args.max_queue_tokens,
        hang_seconds=args.hang_seconds,
        keys=find_keys(args.api_key_file),
        origins=tuple(args.cors_origin),
        certificate=args.tls_cert,
        certificate_key=args.tls_key,
        access_log=args.access_log,
        otlp_endpoint=args.otlp_endpoint,
    )


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Reads a whole number in a range, for argparse."""

    def read(text: str) -> int:
        if (
            not text.removeprefix("-").isdecimal()
            or int(text) < low
            or (high is not None and int(text) > high)
        ):
            limits = f"{low} … {high}" if high is not None else f"at least {low}"
            raise argparse.ArgumentTypeError(f"got {text!r}, need a whole number, {limits}")
        return int(text)

    return read


def _devices(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise argparse.ArgumentTypeError(f"got {text!r}, need different GPU numbers, such as 0,1")
    return tuple(int(part) for part in parts)


if __name__ == "__main__":
    sys.exit(main())
