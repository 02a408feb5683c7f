"""Whether the server lives and is ready, under everybody's names."""

from bei.errors import ShuttingDown
from bei.runtime.http.errors import tei_error
from bei.runtime.http.operation import Answer, Call, Operation


async def health(call: Call, _: None) -> Answer:
    if not call.served.ready:
        raise ShuttingDown("unhealthy")
    return Answer()


OPERATIONS = (
    Operation(
        name="health",
        paths=("/health", "/ping", "/ready"),
        summary="200 when every model is ready, else 503.",
        handle=health,
        tag="health",
        family=tei_error,
    ),
)
