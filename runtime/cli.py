"""`bei-serve BUNDLE`: serve a bundle over HTTP until SIGTERM, then finish what was accepted and exit 0."""

import argparse
import contextlib
import socket
import sys
from collections.abc import Callable, Generator, Sequence

import uvicorn

from bei.errors import BeiError
from bei.runtime.http.app import create_app
from bei.runtime.http.settings import Settings
from bei.runtime.model import load
from bei.runtime.service import Service

DRAIN_SECONDS = 30


def main(argv: Sequence[str] | None = None) -> int:
    """0 after a clean stop; 2 and one message when the bundle, an option or the address is not usable."""
    args = parser().parse_args(argv)
    try:
        with contextlib.closing(bind(args.host, args.port)) as listener:
            serve(args, listener)
    except BeiError as error:
        print(f"bei-serve: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bei-serve", description=__doc__)
    parser.add_argument("bundle", help="folder written by bei-compile")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=_whole(0, 65535), default=8080, help="0 takes a free one (default: %(default)s)"
    )
    parser.add_argument("--target", help="engine to run (default: the first of the bundle's that works here)")
    parser.add_argument("--threads", type=_whole(1), help="CPU threads (default: all this process may use)")
    parser.add_argument(
        "--allow-unverified", action="store_true", help="run an engine that did not pass parity"
    )
    parser.add_argument("--served-model-name", metavar="NAME", help="name in answers (default: the bundle's)")
    parser.add_argument(
        "--max-queue-tokens",
        type=_whole(1),
        default=1 << 20,
        metavar="N",
        help="tokens that may wait before requests are refused with 429 (default: %(default)s)",
    )
    return parser


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


def serve(args: argparse.Namespace, listener: socket.socket) -> None:
    """Load, listen, and run until a signal. Raises BeiError."""
    with load(
        args.bundle, target=args.target, threads=args.threads, allow_unverified=args.allow_unverified
    ) as model:
        model.warm_up()
        service = Service(model, name=args.served_model_name, max_queue_tokens=args.max_queue_tokens)
        config = uvicorn.Config(
            create_app({service.name: service}, Settings(drain_seconds=DRAIN_SECONDS)),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        where = url(listener)
        QuietServer(config, f"bei-serve: {service.name} ({model.target}) on {where}").run([listener])


class QuietServer(uvicorn.Server):
    """uvicorn, but it says one line when it is ready, and a signal it was stopped with is a clean exit."""

    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self._ready, flush=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()  # else uvicorn raises them again and the process dies of them


def bind(host: str, port: int) -> socket.socket:
    """A socket on the address, not yet listening; found out before the bundle is loaded. Raises BeiError.

    It names its protocol: asyncio sends small packets at once (TCP_NODELAY) only where it sees that this is TCP, and
    without that an answer waits 40 ms for the client's delayed ACK.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            undo.pop_all()
    except (OSError, OverflowError) as error:
        raise BeiError(
            f"{host}:{port}: cannot listen there ({error}). Choose another --host or --port."
        ) from None
    return listener


def url(listener: socket.socket) -> str:
    """http://host:port, with brackets around an IPv6 host."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


if __name__ == "__main__":
    sys.exit(main())
