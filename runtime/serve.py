"""From options to a running server: bundles, engines, the application with its layers, and the process around it."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import uvicorn
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from bei.errors import BeiError
from bei.runtime.access_log import AccessLog
from bei.runtime.cold_start import ColdStart
from bei.runtime.http.app import create_app
from bei.runtime.http.auth import KeyCheck
from bei.runtime.http.observe import Exchange, Observe, Watcher
from bei.runtime.http.operations import OPERATIONS
from bei.runtime.http.protocol import ConnectionLimits, limited
from bei.runtime.http.settings import Settings
from bei.runtime.http.stats import Recent, stats_routes
from bei.runtime.keys import Keys
from bei.runtime.listen import is_loopback, url
from bei.runtime.metrics import Metrics
from bei.runtime.pace import HANG_SECONDS
from bei.runtime.process import SLACK_SECONDS, Server, stoppable
from bei.runtime.replicas import loaded
from bei.runtime.service import Service
from bei.runtime.tracing import open_tracer


@dataclass(frozen=True, kw_only=True, slots=True)
class Engines:
    """Which engines run a bundle; as the options of `bei-serve` of these names."""

    target: str | None = None
    threads: int | None = None
    devices: tuple[int, ...] = (0,)
    replicas: int = 1
    max_batch_tokens: int | None = None
    allow_unverified: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How the server meets the world. ``origins`` are those that browsers may call it from; ``keys`` None: open.
    ``hang_seconds``: see `Pace`."""

    settings: Settings = field(default_factory=Settings)
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    max_queue_tokens: int = 1 << 20
    hang_seconds: float = HANG_SECONDS
    keys: Keys | None = None
    origins: tuple[str, ...] = ()
    certificate: Path | None = None
    certificate_key: Path | None = None
    access_log: bool = False
    otlp_endpoint: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedAs:
    """How a bundle is offered: its ``name``, "" for its own; ``prompts`` by name beside its own, and which of all goes
    before a text where none is asked for (None: the one that the bundle says)."""

    name: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None


def serve(
    bundles: Mapping[str, ServedAs],
    engines: Engines,
    options: Options,
    listener: socket.socket,
    start: ColdStart,
) -> None:
    """Load the ``bundles`` (by folder), listen, run until a signal. Raises BeiError."""
    with contextlib.ExitStack() as stack:
        with stoppable():
            services = stack.enter_context(warm_services(bundles, engines, options, start))
            app = stack.enter_context(application(services, options, start))
            config = server_config(app, options)
            config.load()
        _reload_on_hangup(options.keys)
        where = url(listener, "https" if config.is_ssl else "http")
        if options.keys is None and not is_loopback(listener):
            print(
                "bei-serve: listening beyond this machine without API keys (see --api-key-file)",
                file=sys.stderr,
            )

        def ready() -> None:
            start.reached("ready")
            served = ", ".join(f"{service.name} ({service.model.target})" for service in services)
            print(f"bei-serve: {served} on {where}", flush=True)

        async def drain(seconds: float) -> None:
            await asyncio.gather(*(service.close(seconds) for service in services))

        Server(config, ready=ready, drain=drain, drain_seconds=options.settings.drain_seconds).run([listener])


@contextlib.contextmanager
def warm_services(
    bundles: Mapping[str, ServedAs], engines: Engines, options: Options, start: ColdStart
) -> Iterator[list[Service]]:
    """Every bundle loaded, every engine warm. Raises BeiError."""
    with contextlib.ExitStack() as stack:
        services: list[Service] = []
        for path, served_as in bundles.items():
            model, running = stack.enter_context(
                loaded(
                    path,
                    target=engines.target,
                    threads=engines.threads,
                    devices=engines.devices,
                    replicas=engines.replicas,
                    max_batch_tokens=engines.max_batch_tokens,
                    allow_unverified=engines.allow_unverified,
                )
            )
            service = Service(
                model,
                name=served_as.name or None,
                prompts=served_as.prompts,
                default_prompt=served_as.default_prompt,
                max_queue_tokens=options.max_queue_tokens,
                engines=running,
                hang_seconds=options.hang_seconds,
            )
            if service.name in {other.name for other in services}:
                raise BeiError(
                    f"{path}: a second model named {service.name!r}. Name each with --served-model-name."
                )
            _say_skipped(service)
            services.append(service)
        start.reached("loaded")
        for service in services:
            service.warm_up()
        start.reached("warm")
        yield services


def _say_skipped(service: Service) -> None:
    """Why the engines that come first in the bundle's fallback chain are not the one that runs."""
    for skip in service.model.choice.skipped:
        print(f"bei-serve: {service.name}: not {skip.target}: {skip.reason}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def application(services: Sequence[Service], options: Options, start: ColdStart) -> Iterator[ASGIApp]:
    """The routes within their layers, from the inside: keys, other origins' browsers, observation."""
    metrics, recent = Metrics(services, start), Recent()
    watchers: list[Watcher] = [partial(_first_answer, start), metrics, recent]
    if options.access_log:
        watchers.append(AccessLog())
    with contextlib.ExitStack() as stack:
        if options.otlp_endpoint is not None:
            tracer = open_tracer(options.otlp_endpoint, "bei-serve")
            stack.callback(tracer.close)
            watchers.append(tracer)
        extra = stats_routes(services, metrics, recent, start)
        app: ASGIApp = create_app(
            {service.name: service for service in services}, options.settings, routes=extra
        )
        if options.keys is not None:
            app = KeyCheck(app, options.keys)
        if options.origins:
            app = CORSMiddleware(app, options.origins, allow_methods=("GET", "POST"), allow_headers=("*",))
        paths = {path for operation in OPERATIONS for path in operation.paths} | {
            route.path for route in extra
        }
        yield Observe(app, watchers, paths)


def server_config(app: ASGIApp, options: Options) -> uvicorn.Config:
    """uvicorn on httptools and uvloop, with our limits of a connection."""
    return uvicorn.Config(
        app,
        http=limited(options.limits),
        ws="none",
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SLACK_SECONDS,
        ssl_certfile=options.certificate,
        ssl_keyfile=options.certificate_key,
    )


def _first_answer(start: ColdStart, exchange: Exchange) -> None:
    """To a request that an engine worked for."""
    if exchange.record.rows and exchange.status < 400:
        start.reached("answered")


def _reload_on_hangup(keys: Keys | None) -> None:
    """SIGHUP reads the file of keys again; when that cannot be used the old ones stay."""
    if keys is None or not hasattr(signal, "SIGHUP"):
        return

    def reload(number: int, frame: object) -> None:
        try:
            keys.reload()
        except BeiError as error:
            print(f"bei-serve: {error} The keys stay as they were.", file=sys.stderr, flush=True)

    signal.signal(signal.SIGHUP, reload)
