"""The OpenAPI document says what the server does: schemathesis asks everything in it, and more."""

import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from bei.runtime.http.openapi import PATHS
from bei.runtime.http.operations import OPERATIONS

CASES = [
    (operation.method, path.replace(":path", ""), mode)
    for operation in OPERATIONS
    for path in operation.paths[:1]
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if operation.body is not None or mode is GenerationMode.POSITIVE
]
EXAMPLES = int(os.environ.get("BEI_FUZZ", "15"))
"""Requests a route and mode."""


@pytest.fixture(scope="module")
def api(http: httpx.Client) -> Any:
    return schemathesis.openapi.from_dict(http.get("/openapi.json").json())


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_the_server_does_what_its_document_says(
    api: Any, url: str, session: requests.Session, method: str, path: str, mode: GenerationMode
) -> None:
    """Of bodies that fit the schema some are refused all the same: empty texts, unknown prompts, ids beyond the vocabulary."""

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=api[path][method].as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        case.call_and_validate(base_url=url, session=session, excluded_checks=[positive_data_acceptance])

    ask()


@pytest.mark.parametrize("path", PATHS)
def test_the_document_has_every_route(http: httpx.Client, path: str) -> None:
    document = http.get(path).json()
    assert document["openapi"].startswith("3.1")
    offered = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    made = {
        (operation.method, path.replace(":path", "")) for operation in OPERATIONS for path in operation.paths
    }
    assert offered == made
    names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(names) == len(set(names))
