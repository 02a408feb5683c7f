"""GET / for people: one page over the public routes, with nothing fetched from elsewhere."""

import base64
import hashlib
from pathlib import Path
from string import Template

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bei.runtime.http.served import Served

FOLDER = Path(__file__).parent


def page_route(served: Served) -> Route:
    """The page where the client asks for HTML, otherwise TEI's answer to GET /: whether the server is ready."""
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    page = Template((FOLDER / "page.html").read_text(encoding="utf-8")).substitute(style=style, script=script)
    headers = {
        "content-security-policy": policy(style, script),
        "vary": "accept",
        "x-content-type-options": "nosniff",
    }

    async def answer(request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return Response(page, headers=headers, media_type="text/html")
        return Response(status_code=200 if served.ready else 503, headers={"vary": "accept"})

    return Route("/", answer, methods=["GET"])


def policy(style: str, script: str) -> str:
    """What the page may do: its own style and script, and requests to this server."""
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "connect-src 'self'; img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
