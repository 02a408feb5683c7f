"""API keys at the door: `Authorization: Bearer KEY` (OpenAI, TEI) or `Api-Key KEY` (Baseten)."""

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from bei.runtime.http.errors import UNAUTHORIZED, Failure
from bei.runtime.http.operations import OPERATIONS, family_of
from bei.runtime.keys import Keys

SCHEMES = ("bearer", "api-key")

HEALTH_PATHS = frozenset(
    path for operation in OPERATIONS if operation.tag == "health" for path in operation.paths
)
"""Open to everybody: who checks them has no key, and they tell nothing."""

REFUSED = Failure(
    UNAUTHORIZED,
    "authorization: missing or wrong API key. Send 'Authorization: Bearer KEY'.",
    headers={"www-authenticate": "Bearer"},
)


class KeyCheck:
    """Lets requests with a key pass, and those for ``open_paths``."""

    def __init__(self, app: ASGIApp, keys: Keys, open_paths: Collection[str] = HEALTH_PATHS) -> None:
        self._app, self._keys, self._open = app, keys, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._may_pass(scope):
            await self._app(scope, receive, send)
        else:
            await family_of(scope["path"])(REFUSED)(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        path = scope["path"].removeprefix("/sync")
        return path in self._open or self._keys.accept(_given(Headers(scope=scope)))


def _given(headers: Headers) -> bytes:
    """The key in the request, empty when there is none."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip().encode("latin-1") if scheme.lower() in SCHEMES else b""
