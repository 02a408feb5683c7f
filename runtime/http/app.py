"""The application: routes from the table of operations, their lifespan, and the handlers of errors."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from bei.runtime.http import openapi
from bei.runtime.http.body import read_body
from bei.runtime.http.encoding import JSON, respond
from bei.runtime.http.errors import FAILURES, Failure
from bei.runtime.http.operation import Call, Operation
from bei.runtime.http.operations import OPERATIONS, family_of
from bei.runtime.http.page.route import page_route
from bei.runtime.http.report import DETAIL, report
from bei.runtime.http.served import Served
from bei.runtime.http.settings import Settings
from bei.runtime.http.waiting import Deadline, unless_gone
from bei.runtime.service import Service

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(
    services: Mapping[str, Service],
    settings: Settings | None = None,
    *,
    routes: Sequence[BaseRoute] = (),
) -> Starlette:
    """The application over ``services`` by name; its lifespan starts them, and drains them at the end.

    ``routes`` come before the contracts' own. Every route is under /sync too.
    """
    settings = settings or Settings()
    served = Served(services, strict=settings.strict_model_name)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        served.start()
        yield
        await served.close(settings.drain_seconds)

    documents = [Route(path, openapi_document) for path in openapi.PATHS]
    made: list[BaseRoute] = [*routes, *documents, page_route(), *contract_routes(served, settings)]
    return Starlette(
        routes=[*made, Mount("/sync", routes=made)],
        exception_handlers=dict.fromkeys(FAILURES, answer_error),
        lifespan=lifespan,
    )


def contract_routes(served: Served, settings: Settings) -> list[BaseRoute]:
    return [
        Route(path, endpoint(operation, served, settings), methods=[operation.method])
        for operation in OPERATIONS
        for path in operation.paths
    ]


def endpoint(operation: Operation, served: Served, settings: Settings) -> Endpoint:
    """Read, handle for as long as the client is there, answer."""

    async def answer(request: Request) -> Response:
        deadline = Deadline(request.headers)
        call = Call(served=served, settings=settings, path_params=request.path_params)
        if operation.body is None:
            made = await operation.handle(call, None)
        else:
            body = await read_body(request, operation.body, settings.max_body_bytes)
            made = await unless_gone(request, deadline, operation.handle(call, body))
        headers = report(made, request.headers.get(DETAIL))
        return await respond(made, request.headers, headers)

    return answer


async def openapi_document(request: Request) -> Response:
    return Response(openapi.document(), media_type=JSON)


async def answer_error(request: Request, error: Exception) -> Response:
    """In the words of the route's own family."""
    return family_of(request.scope["path"])(failure_of(error))


def failure_of(error: Exception) -> Failure:
    return next(FAILURES[kind] for kind in type(error).__mro__ if kind in FAILURES)(error)
