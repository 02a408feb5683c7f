"""Request bodies: read within a limit, then decoded."""

from typing import Any

import msgspec
from starlette.requests import Request

from bei.runtime.http.errors import TOO_LARGE, Refusal


async def read_body(request: Request, kind: Any, max_bytes: int) -> Any:
    """The body as ``kind``; refused as soon as it passes ``max_bytes``. Raises Refusal and msgspec's errors."""
    return msgspec.json.decode(await _content(request, max_bytes), type=kind)


async def _content(request: Request, max_bytes: int) -> bytearray:
    size = request.headers.get("content-length", "")
    if size.isdecimal() and int(size) > max_bytes:
        raise Refusal(TOO_LARGE, f"the body has {size} bytes, at most {max_bytes} are read")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > max_bytes:
            raise Refusal(TOO_LARGE, f"the body has more than {max_bytes} bytes")
    return content
