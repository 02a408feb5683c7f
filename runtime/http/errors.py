"""Failures as clients expect them: what went wrong is said once, each family of contracts has its own words for it.

OpenAI's routes answer with OpenAI's envelope and TEI's flat fields beside it, so that both kinds of client read it;
the routes of Text Embeddings Inference (TEI) and Baseten answer with TEI's two fields.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from bei.errors import (
    BeiError,
    DeadlineExceeded,
    EmptyInput,
    EngineLost,
    InputError,
    ModelNotFound,
    Overloaded,
    ShuttingDown,
    WrongTask,
)

DRAIN_RETRY_SECONDS = 1.0
FIELD = re.compile(r"([a-z][a-z_]*)(?: \d+)?:")
"""Our messages begin with their subject: the field at fault, where it is one."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A class of failure: its status on OpenAI's routes and on TEI's, and TEI's name for it."""

    openai: int
    tei: int
    name: str


EMPTY = Kind(400, 400, "Empty")
INVALID = Kind(400, 422, "Validation")
SYNTAX = Kind(400, 400, "Validation")
UNAUTHORIZED = Kind(401, 401, "Unauthorized")
NOT_FOUND = Kind(404, 404, "NotFound")
WRONG_TASK = Kind(400, 424, "Backend")
LATE = Kind(408, 408, "Overloaded")
TOO_LARGE = Kind(413, 413, "Validation")
MEDIA_TYPE = Kind(415, 415, "Validation")
OVERLOADED = Kind(429, 429, "Overloaded")
CLIENT_GONE = Kind(499, 499, "Overloaded")
"""nginx's code; nobody is left to read it."""
BACKEND = Kind(500, 500, "Backend")
"""Unlike TEI's 424, which no client tries again."""
UNHEALTHY = Kind(503, 503, "Unhealthy")

OPENAI_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """``param`` names the request field at fault."""

    kind: Kind
    message: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """A request refused by the HTTP layer itself."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message)


class ErrorDetail(msgspec.Struct, kw_only=True):
    """OpenAI's error object; ``param`` names the request field at fault."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenAIError(msgspec.Struct, kw_only=True):
    """OpenAI's envelope, and beside it the flat fields that clients of TEI read on OpenAI's routes."""

    error: ErrorDetail
    message: str
    type: str
    code: int


class TeiError(msgspec.Struct, kw_only=True):
    """TEI's error on its own routes."""

    error: str
    error_type: str


Family = Callable[[Failure], Response]


def openai_error(failure: Failure) -> Response:
    status, message = failure.kind.openai, failure.message
    kind = OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    detail = ErrorDetail(message=message, type=kind, param=failure.param)
    body = OpenAIError(error=detail, message=message, type=failure.kind.name, code=status)
    return Response(msgspec.json.encode(body), status, failure.headers, "application/json")


def tei_error(failure: Failure) -> Response:
    body = TeiError(error=failure.message, error_type=failure.kind.name)
    return Response(msgspec.json.encode(body), failure.kind.tei, failure.headers, "application/json")


def bad_input(error: Exception) -> Failure:
    found = FIELD.match(str(error))
    kind = EMPTY if isinstance(error, EmptyInput) else INVALID
    return Failure(kind, str(error), found[1] if found else None)


def bad_field(error: Exception) -> Failure:
    """msgspec names the field as `$.field…`, or as a missing one."""
    found = re.search(r"`\$\.(\w+)|required field `(\w+)", str(error))
    param = (found[1] or found[2]) if found else None
    return Failure(INVALID, f"{param or 'body'}: {error}", param)


def bad_json(error: Exception) -> Failure:
    return Failure(SYNTAX, f"body: not valid JSON ({error})")


def model_not_found(error: Exception) -> Failure:
    return Failure(NOT_FOUND, str(error), "model")


def wrong_task(error: Exception) -> Failure:
    return Failure(WRONG_TASK, str(error))


def overloaded(error: Exception) -> Failure:
    seconds = error.retry_after if isinstance(error, Overloaded) else DRAIN_RETRY_SECONDS
    return Failure(OVERLOADED, str(error), headers=retry_headers(seconds))


def unhealthy(error: Exception) -> Failure:
    return Failure(UNHEALTHY, str(error), headers=retry_headers(DRAIN_RETRY_SECONDS))


def too_late(error: Exception) -> Failure:
    return Failure(LATE, str(error))


def failed(error: Exception) -> Failure:
    return Failure(BACKEND, str(error))


def crashed(error: Exception) -> Failure:
    """A bug of ours: the details go to the log, not to the client."""
    return Failure(BACKEND, "internal error")


def refused(error: Exception) -> Failure:
    assert isinstance(error, Refusal)
    return error.failure


def not_routed(error: Exception) -> Failure:
    """Starlette's own: no such route, or not with this method."""
    assert isinstance(error, HTTPException)
    kind = Kind(
        error.status_code, error.status_code, "NotFound" if error.status_code == 404 else "Validation"
    )
    return Failure(kind, error.detail, headers=error.headers or {})


def client_gone(error: Exception) -> Failure:
    return Failure(CLIENT_GONE, "the client closed the connection")


def retry_headers(seconds: float) -> dict[str, str]:
    """What OpenAI's and Baseten's clients read before they try again."""
    return {
        "retry-after-ms": str(math.ceil(seconds * 1000)),
        "retry-after": str(math.ceil(seconds)),
        "x-should-retry": "true",
    }


FAILURES: Mapping[type[Exception], Callable[[Exception], Failure]] = {
    Refusal: refused,
    WrongTask: wrong_task,
    InputError: bad_input,
    ModelNotFound: model_not_found,
    msgspec.ValidationError: bad_field,
    msgspec.DecodeError: bad_json,
    UnicodeDecodeError: bad_json,
    RecursionError: bad_json,
    Overloaded: overloaded,
    ShuttingDown: unhealthy,
    DeadlineExceeded: too_late,
    EngineLost: unhealthy,
    BeiError: failed,
    HTTPException: not_routed,
    ClientDisconnect: client_gone,
    Exception: crashed,
}
"""One entry a class of error; the nearest base decides."""
