"""GET / for people: one page over the public routes, with nothing fetched from elsewhere."""

import base64
import hashlib
from pathlib import Path
from string import Template

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

FOLDER = Path(__file__).parent


class HtmlRoute(Route):
    """A route for clients that ask for HTML; others find the next one at the same path."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http" and "text/html" in Headers(scope=scope).get("accept", ""):
            return super().matches(scope)
        return Match.NONE, {}


def page_route() -> Route:
    """The page at /, which is TEI's health route for everybody else."""
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    page = Template((FOLDER / "page.html").read_text(encoding="utf-8")).substitute(style=style, script=script)
    headers = {
        "content-security-policy": policy(style, script),
        "vary": "accept",
        "x-content-type-options": "nosniff",
    }

    async def answer(request: Request) -> Response:
        return Response(page, headers=headers, media_type="text/html")

    return HtmlRoute("/", answer, methods=["GET"])


def policy(style: str, script: str) -> str:
    """What the page may do: its own style and script, and requests to this server."""
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "connect-src 'self'; img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
