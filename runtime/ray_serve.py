"""`bei-serve`'s HTTP application on Ray Serve: `import_path: bei.runtime.ray_serve:build` in a Serve config.

Every replica holds the bundles and answers all routes; Ray's proxy spreads requests over them. An example config is
examples/ray_serve.yaml. Ray replaces a replica whose engines are gone, starts the new one before it stops the old one
when the bundle changes, and lets a replica finish what it has accepted. How much may wait is for the replicas to say,
in tokens, with 429: Ray's own limit in requests is out of the way.
"""

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bei.errors import EngineLost
from bei.runtime.cold_start import ColdStart
from bei.runtime.http.observe import REQUEST_ID
from bei.runtime.process import SLACK_SECONDS
from bei.runtime.ray_arguments import Arguments, read_arguments
from bei.runtime.ray_autoscaling import Load
from bei.runtime.ray_metrics import RayMetrics
from bei.runtime.serve import Engines, application, warm_services

NAME = "bei"
"""Of the deployment, as a config's `deployments` names it."""

MAX_ONGOING_REQUESTS = 1 << 16
"""Beyond what a replica refuses by itself."""

MAX_CONSTRUCTOR_RETRIES = 2
"""A bundle that cannot be served will not be the next time either."""


def build(args: dict[str, Any]) -> Application:
    """The application for the ``args`` of a Serve config (see `Arguments`). Raises InputError."""
    arguments = read_arguments(args)
    return DEPLOYMENT.options(graceful_shutdown_timeout_s=arguments.drain_seconds + SLACK_SECONDS).bind(
        arguments
    )


class Replica:
    """The bundles, loaded and warm, and the application over them; with the CPUs and GPUs that Ray gave it."""

    def __init__(self, arguments: Arguments) -> None:
        """Raises BeiError."""
        self._held = contextlib.ExitStack()
        start = ColdStart(time.monotonic())  # Ray's process may have been waiting for work since long before
        start.reached("imported")
        options = arguments.options()
        self._services = self._held.enter_context(
            warm_services(arguments.served(), _engines(arguments), options, start)
        )
        self._app = BehindProxy(self._held.enter_context(application(self._services, options, start)))
        self._load, self._metrics = Load(self._services), RayMetrics(self._services)
        start.reached("ready")

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Ray, which also runs the application's lifespan."""
        return self._app

    async def check_health(self) -> None:
        """Called by Ray every other second; it replaces a replica for which this raises. Raises EngineLost."""
        self._metrics.publish()
        lost = [service.name for service in self._services if service.lost]
        if lost:
            raise EngineLost(f"{', '.join(lost)}: no engine is left.")

    async def record_autoscaling_stats(self) -> Mapping[str, float]:
        """Called by Ray, which gives it to the policy."""
        return self._load.report()

    def __del__(self) -> None:
        """Called by Ray when everything accepted is answered; again later by Python."""
        self._held.close()


class BehindProxy:
    """The application as seen through Ray's proxy, which may put it under a prefix and adds the request's id itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        prefix = scope.get("root_path", "")
        inner = {**scope, "path": scope["path"].removeprefix(prefix) or "/", "root_path": ""}

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [pair for pair in message["headers"] if pair[0] != REQUEST_ID.encode()]
            await send(message)

        await self._app(inner, receive, answer)


def _engines(arguments: Arguments) -> Engines:
    """On what Ray assigned: its CPUs as threads, its GPUs as devices (Ray numbers them from 0 for each replica)."""
    context = ray.get_runtime_context()
    resources = context.get_assigned_resources()  # type: ignore[no-untyped-call]
    gpus = len(context.get_accelerator_ids().get("GPU", ()))
    return Engines(
        target=arguments.target,
        threads=max(1, int(resources.get("CPU", 1))),
        devices=tuple(range(max(1, gpus))),
        max_batch_tokens=arguments.max_batch_tokens,
        allow_unverified=arguments.allow_unverified,
    )


DEPLOYMENT = serve.deployment(
    name=NAME,
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    max_surge_percent=100,
    max_constructor_retry_count=MAX_CONSTRUCTOR_RETRIES,
    graceful_shutdown_wait_loop_s=0.5,
    health_check_period_s=2,
)(serve.ingress()(Replica))
