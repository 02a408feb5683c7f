"""Whether the server lives and is ready, under everybody's names."""

import msgspec

from bei.errors import EngineLost, ShuttingDown
from bei.runtime.http.errors import NOT_FOUND, UNHEALTHY, tei_error
from bei.runtime.http.operation import Answer, Call, Operation

TAG = "health"


class NimHealth(msgspec.Struct, kw_only=True):
    """NVIDIA NIM's answer."""

    object: str = "health.response"
    message: str
    ready: bool = True


class KServeLive(msgspec.Struct, kw_only=True):
    """KServe v2's answer to whether the server lives."""

    live: bool = True


class KServeReady(msgspec.Struct, kw_only=True):
    """KServe v2's answer to whether the server, or a model, is ready."""

    ready: bool = True


async def health(call: Call, _: None) -> Answer:
    check_ready(call)
    return Answer()


async def nim_live(call: Call, _: None) -> Answer:
    check_alive(call)
    return Answer(content=NimHealth(message="live"))


async def nim_ready(call: Call, _: None) -> Answer:
    check_ready(call)
    return Answer(content=NimHealth(message="ready"))


async def kserve_live(call: Call, _: None) -> Answer:
    check_alive(call)
    return Answer(content=KServeLive())


async def kserve_ready(call: Call, _: None) -> Answer:
    check_ready(call)
    return Answer(content=KServeReady())


async def kserve_model_ready(call: Call, _: None) -> Answer:
    if not call.served.named(call.path_params["name"]).ready:
        raise ShuttingDown("unhealthy")
    return Answer(content=KServeReady())


def check_ready(call: Call) -> None:
    if not call.served.ready:
        raise ShuttingDown("unhealthy")


def check_alive(call: Call) -> None:
    """A server that drains lives; one whose engines are gone for good has to be started again."""
    if any(service.lost for service in call.served):
        raise EngineLost("no engine is left")


OPERATIONS = (
    Operation(
        name="health",
        paths=("/health", "/ping", "/ready", "/"),
        summary="200 when every model is ready, else 503.",
        handle=health,
        tag=TAG,
        may_fail=(UNHEALTHY,),
        family=tei_error,
    ),
    Operation(
        name="nim_live",
        paths=("/v1/health/live",),
        summary="200 as long as the server can answer, now or later; 503 when it has to be started again.",
        handle=nim_live,
        tag=TAG,
        may_fail=(UNHEALTHY,),
        gives=NimHealth,
    ),
    Operation(
        name="nim_ready",
        paths=("/v1/health/ready",),
        summary="200 when every model is ready, else 503.",
        handle=nim_ready,
        tag=TAG,
        may_fail=(UNHEALTHY,),
        gives=NimHealth,
    ),
    Operation(
        name="kserve_live",
        paths=("/v2/health/live",),
        summary="200 as long as the server can answer, now or later; 503 when it has to be started again.",
        handle=kserve_live,
        tag=TAG,
        may_fail=(UNHEALTHY,),
        gives=KServeLive,
    ),
    Operation(
        name="kserve_ready",
        paths=("/v2/health/ready",),
        summary="200 when every model is ready, else 503.",
        handle=kserve_ready,
        tag=TAG,
        may_fail=(UNHEALTHY,),
        gives=KServeReady,
    ),
    Operation(
        name="kserve_model_ready",
        paths=("/v2/models/{name}/ready",),
        summary="200 when this model is ready, else 503.",
        handle=kserve_model_ready,
        tag=TAG,
        may_fail=(NOT_FOUND, UNHEALTHY),
        gives=KServeReady,
    ),
)
