"""Errors as OpenAI's clients and Text Embeddings Inference's expect them: one handler a class of error."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from bei.errors import BeiError, DeadlineExceeded, InputError, Overloaded, ShuttingDown
from bei.runtime.schemas import EmbeddingRequest, ErrorBody, ErrorDetail

CLIENT_CLOSED_REQUEST = 499
"""nginx's code; nobody is left to read it."""

DRAIN_RETRY_SECONDS = 1.0

KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
FIELDS = frozenset(EmbeddingRequest.__struct_fields__)


def error_response(
    status: int,
    message: str,
    *,
    tei: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """OpenAI's envelope with TEI's flat fields beside it; ``tei`` is TEI's name of the error."""
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    detail = ErrorDetail(message=message, type=kind, param=param)
    body = ErrorBody(error=detail, message=message, type=tei, code=status)
    return Response(msgspec.json.encode(body), status, headers, "application/json")


async def bad_input(request: Request, error: Exception) -> Response:
    """Our messages begin with their subject: the field at fault, where it is one."""
    first = re.match(r"\w+", str(error))
    param = first[0] if first and first[0] in FIELDS else None
    return error_response(400, str(error), tei="Validation", param=param)


async def bad_field(request: Request, error: Exception) -> Response:
    """msgspec names the field as `$.field…`, or as a missing one."""
    found = re.search(r"`\$\.(\w+)|required field `(\w+)", str(error))
    param = (found[1] or found[2]) if found else None
    return error_response(400, f"{param or 'body'}: {error}", tei="Validation", param=param)


async def bad_json(request: Request, error: Exception) -> Response:
    return error_response(400, f"body: not valid JSON ({error})", tei="Validation")


async def overloaded(request: Request, error: Exception) -> Response:
    seconds = error.retry_after if isinstance(error, Overloaded) else DRAIN_RETRY_SECONDS
    return error_response(429, str(error), tei="Overloaded", headers=retry_headers(seconds))


async def shutting_down(request: Request, error: Exception) -> Response:
    return error_response(503, str(error), tei="Unhealthy", headers=retry_headers(DRAIN_RETRY_SECONDS))


async def too_late(request: Request, error: Exception) -> Response:
    return error_response(408, str(error), tei="Overloaded")


async def failed(request: Request, error: Exception) -> Response:
    return error_response(500, str(error), tei="Backend")


async def crashed(request: Request, error: Exception) -> Response:
    """A bug of ours: the details go to the log, not to the client."""
    return error_response(500, "internal error", tei="Backend")


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, error.detail, tei="Validation", headers=error.headers)


async def client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def retry_headers(seconds: float) -> dict[str, str]:
    """What OpenAI's and Baseten's clients read before they try again."""
    return {
        "retry-after-ms": str(math.ceil(seconds * 1000)),
        "retry-after": str(math.ceil(seconds)),
        "x-should-retry": "true",
    }


EXCEPTION_HANDLERS: Mapping[Any, Callable[[Request, Exception], Any]] = {
    InputError: bad_input,
    msgspec.ValidationError: bad_field,
    msgspec.DecodeError: bad_json,
    UnicodeDecodeError: bad_json,
    RecursionError: bad_json,
    Overloaded: overloaded,
    ShuttingDown: shutting_down,
    DeadlineExceeded: too_late,
    BeiError: failed,
    HTTPException: refused,
    ClientDisconnect: client_gone,
    Exception: crashed,
}
