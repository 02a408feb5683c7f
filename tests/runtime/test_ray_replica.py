"""A replica without a cluster: what Ray assigns becomes threads and devices; the application under a prefix."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="needs ray (extra: ray)")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("cpus", "gpus", "threads", "devices"),
    [({"CPU": 4.0}, [], 4, (0,)), ({"CPU": 0.5}, ["3"], 1, (0,)), ({}, ["1", "5"], 1, (0, 1))],
)
def test_engines_are_on_what_ray_assigned(
    monkeypatch: pytest.MonkeyPatch,
    cpus: dict[str, float],
    gpus: list[str],
    threads: int,
    devices: tuple[int, ...],
) -> None:
    from bei.runtime import ray_serve
    from bei.runtime.ray_arguments import read_arguments

    context = SimpleNamespace(
        get_assigned_resources=lambda: cpus, get_accelerator_ids=lambda: {"GPU": gpus, "TPU": []}
    )
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    engines = ray_serve._engines(read_arguments({"bundles": "/a", "target": "cuda-sm90"}))
    assert (engines.threads, engines.devices, engines.replicas) == (threads, devices, 1)
    assert (engines.target, engines.allow_unverified) == ("cuda-sm90", False)


@pytest.mark.parametrize(
    ("prefix", "path", "inner"),
    [("", "/embed", "/embed"), ("/bei", "/bei/embed", "/embed"), ("/bei", "/bei", "/"), ("/a", "/a/a", "/a")],
)
def test_the_application_does_not_see_the_prefix(prefix: str, path: str, inner: str) -> None:
    """Nor does the client see the request's id twice."""
    from bei.runtime.ray_serve import BehindProxy

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["path"], scope["root_path"]))
        headers = [(b"x-request-id", b"ours"), (b"x-other", b"kept")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send(message: Any) -> None:
        seen.append(message["headers"])

    async def receive() -> Any: ...

    seen: list[Any] = []
    scope = {"type": "http", "path": path, "root_path": prefix}
    asyncio.run(BehindProxy(app)(scope, receive, send))
    assert seen == [(inner, ""), [(b"x-other", b"kept")]]
