"""The HTTP API over a `Service`: handlers parse, call, and encode; each class of error has one handler."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from bei.errors import DeadlineExceeded, InputError
from bei.runtime.http_errors import EXCEPTION_HANDLERS
from bei.runtime.schemas import (
    MAX_ITEMS,
    EmbeddingRequest,
    ModelCard,
    ModelList,
    embedding_body,
)
from bei.runtime.service import Embedded, Service, Truncation
from bei.runtime.tokenizer import Input

MAX_BODY_BYTES = 32 << 20
SMALL_ANSWER = 1 << 15
"""Numbers in an answer that is quicker to write in the event loop than to hand to a thread."""

T = TypeVar("T")
Body = TypeVar("Body", bound=msgspec.Struct)


def create_app(
    service: Service, *, drain_seconds: float = 30.0, max_body_bytes: int = MAX_BODY_BYTES
) -> Starlette:
    """The application; its lifespan starts the service, and drains it at the end."""
    started = int(time.time())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.start()
        yield
        await service.close(drain_seconds)

    async def embeddings(request: Request) -> Response:
        body = await read_json(request, EmbeddingRequest, max_body_bytes)
        timeout = seconds_left(request)
        result = await unless_gone(request, embed(service, body, timeout))
        return await embedding_response(service.name, result, base64=body.encoding_format == "base64")

    async def models(request: Request) -> Response:
        return json_response(ModelList(data=[ModelCard(id=service.name, created=started)]))

    async def model(request: Request) -> Response:
        if request.path_params["id"] != service.name:
            raise HTTPException(404, f"model: {request.path_params['id']!r} is not served here")
        return json_response(ModelCard(id=service.name, created=started))

    async def health(request: Request) -> Response:
        if service.ready:
            return Response()
        return json_response({"error": "unhealthy", "error_type": "Unhealthy"}, status=503)

    routes = [
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/embeddings", embeddings, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{id:path}", model),
        *(Route(path, health) for path in ("/health", "/ping", "/ready")),
    ]
    return Starlette(
        routes=[*routes, Mount("/sync", routes=routes)],
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=lifespan,
    )


async def embed(service: Service, body: EmbeddingRequest, timeout: float | None) -> Embedded:
    """Run a parsed request. Raises what `Service.embed` raises."""
    return await service.embed(
        parse_input(body.input),
        truncation=truncation(service, body),
        prompt_name=body.prompt_name,
        input_type=body.input_type,
        dimensions=body.dimensions,
        normalize=body.normalize,
        timeout=timeout,
    )


async def embedding_response(model: str, result: Embedded, *, base64: bool) -> Response:
    """Numbers or base64, and ``x-truncated`` with the count of inputs that were cut."""

    def write() -> bytes:
        return embedding_body(result.vectors, model=model, tokens=result.tokens, base64=base64)

    content = write() if result.vectors.size <= SMALL_ANSWER else await asyncio.to_thread(write)
    headers = {"x-truncated": str(result.truncated)} if result.truncated else None
    return Response(content, media_type="application/json", headers=headers)


def parse_input(given: str | list[str | int | list[int]]) -> list[Input]:
    """The inputs: a text is one, a flat list of integers is one document of token ids. Raises InputError."""
    if isinstance(given, str):
        given = [given]
    numbers = sum(isinstance(item, int) for item in given)
    inputs: list[Any] = [given] if given and numbers == len(given) else given
    if numbers and inputs is given:
        raise InputError(
            "input: mixes token ids with other items. Send texts, one list of ids, or lists of ids."
        )
    if not inputs:
        raise InputError("input: empty list. Send at least one text.")
    if len(inputs) > MAX_ITEMS:
        raise InputError(f"input: {len(inputs)} items, at most {MAX_ITEMS} fit in one request.")
    for index, item in enumerate(inputs):
        if item == "":
            raise InputError(f"input {index}: empty string. Leave it out, or send a space.")
    return inputs


def truncation(service: Service, body: EmbeddingRequest) -> Truncation:
    """How long inputs are handled: cut at the end unless the request says otherwise."""
    limit = None if body.truncate_prompt_tokens == -1 else body.truncate_prompt_tokens
    side = body.truncation_side or ("left" if body.truncate == "START" else "right")
    return service.truncation(limit, allowed=body.truncate not in (False, "NONE"), side=side)


async def read_json(request: Request, kind: type[Body], max_bytes: int) -> Body:
    """The body as ``kind``; refused with 413 as soon as it passes ``max_bytes``."""
    size = request.headers.get("content-length", "")
    if size.isdecimal() and int(size) > max_bytes:
        raise HTTPException(413, f"the body has {size} bytes, at most {max_bytes} are read")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > max_bytes:
            raise HTTPException(413, f"the body has more than {max_bytes} bytes")
    return msgspec.json.decode(content, type=kind)


def seconds_left(request: Request) -> float | None:
    """The client's own limit, from ``request-deadline-ms`` (unix time) or ``request-timeout-ms``."""
    deadline, allowed = (request.headers.get(f"request-{name}-ms", "") for name in ("deadline", "timeout"))
    if deadline.isdecimal():
        left = int(deadline) / 1000 - time.time()
        if left <= 0:
            raise DeadlineExceeded("the request came after its own deadline")
        return left
    return int(allowed) / 1000 if allowed.isdecimal() else None


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client disconnects. Raises ClientDisconnect."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, "application/json")
