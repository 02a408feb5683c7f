"""The OpenAPI 3.1 document, made from the table of operations and the structs that read and write the bodies."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from http import HTTPStatus
from inspect import cleandoc
from typing import Any

import msgspec

from bei import __version__
from bei.runtime.http.encoding import JSON, MSGPACK, RAW
from bei.runtime.http.errors import OpenAIError, TeiError, openai_error
from bei.runtime.http.operation import Operation
from bei.runtime.http.operations import OPERATIONS

PATHS = ("/openapi.json", "/api-doc/openapi.json")

TEMPLATE = re.compile(r"{(\w+)(?::\w+)?}")
"""A parameter in one of Starlette's paths."""

Schema = dict[str, Any]


@cache
def document() -> bytes:
    """As JSON."""
    operations = (kind for operation in OPERATIONS for kind in (operation.body, *given(operation)))
    kinds = [OpenAIError, TeiError, *(kind for kind in operations if kind is not None)]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    for component in components.values():
        component["description"] = cleandoc(component["description"])
    of_kind = {str(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "bei", "version": __version__, "license": {"name": "Apache-2.0"}},
            "paths": paths(of_kind),
            "components": {"schemas": components},
        }
    )


def given(operation: Operation) -> tuple[Any, ...]:
    """What an operation may answer with."""
    return operation.gives if isinstance(operation.gives, tuple) else (operation.gives,)


def paths(of_kind: Mapping[str, Schema]) -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        for number, path in enumerate(operation.paths):
            item = made.setdefault(TEMPLATE.sub(r"{\1}", path), {})
            item[operation.method.lower()] = describe(operation, path, number, of_kind)
    return made


def describe(operation: Operation, path: str, number: int, of_kind: Mapping[str, Schema]) -> dict[str, Any]:
    """One operation under one of its paths; the first path has the operation's own name."""
    made: dict[str, Any] = {
        "operationId": f"{operation.name}_{number + 1}" if number else operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "responses": {"200": answer(operation, of_kind), **dict(failures(operation, of_kind))},
    }
    parameters = [parameter(name) for name in TEMPLATE.findall(path)]
    if parameters:
        made["parameters"] = parameters
    if operation.body is not None:
        schema = of_kind[str(operation.body)]
        made["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    return made


def answer(operation: Operation, of_kind: Mapping[str, Schema]) -> Schema:
    made: Schema = {"description": operation.summary}
    if operation.gives is not None:
        schemas = [of_kind[str(kind)] for kind in given(operation)]
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        made["content"] = {JSON: {"schema": schema}, MSGPACK: {"schema": schema}}
        if operation.gives_rows:
            made["content"][RAW] = {"schema": {"type": "string", "format": "binary"}}
    return made


def failures(operation: Operation, of_kind: Mapping[str, Schema]) -> Iterable[tuple[str, Schema]]:
    """By status, in the words of the operation's family."""
    of_openai = operation.family is openai_error
    content = {JSON: {"schema": of_kind[str(OpenAIError if of_openai else TeiError)]}}
    for status in sorted({kind.openai if of_openai else kind.tei for kind in operation.failures}):
        yield str(status), {"description": HTTPStatus(status).phrase, "content": content}


def parameter(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
