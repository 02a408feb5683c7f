"""Whatever a body holds, the answer is right or says what is wrong with the request: 2xx or 4xx, never 5xx.

BEI_FUZZ=1000 asks each route a thousand times.
"""

import os
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bei.runtime.http.errors import tei_error
from bei.runtime.http.operation import Operation
from bei.runtime.http.operations import OPERATIONS

EXAMPLES = int(os.environ.get("BEI_FUZZ", "25"))
POSTS = [operation for operation in OPERATIONS if operation.body is not None]
FIELDS = {
    operation.name: ("inputs", "query", "texts", "type", "model")
    if operation.name == "invocations"
    else tuple(operation.body.__struct_fields__)
    for operation in POSTS
}

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(-2, 64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=40)
    | st.sampled_from(
        ["embed", "rerank", "classify", "tags", "query", "Right", "NONE", "simple", "a b hello"]
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
LIKELY = (
    st.text(max_size=20)
    | st.lists(st.text(max_size=8), max_size=3)
    | st.lists(st.integers(0, 62), max_size=5)
)


def bodies(operation: Operation) -> st.SearchStrategy[bytes]:
    """JSON objects with the route's own fields, any JSON, and bytes that are none."""
    fields = st.dictionaries(st.sampled_from(FIELDS[operation.name]), LIKELY | VALUES, max_size=6)
    return (fields | VALUES).map(msgspec.json.encode) | st.binary(max_size=30)


@pytest.mark.parametrize("operation", POSTS, ids=lambda operation: operation.name)
def test_no_body_breaks_a_route(http: httpx.Client, operation: Operation) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(body=bodies(operation), path=st.sampled_from(operation.paths))
    def ask(body: bytes, path: str) -> None:
        answer = http.post(path, content=body)
        assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
        check_shape(operation, answer)

    ask()


def check_shape(operation: Operation, answer: httpx.Response) -> None:
    """An answer without NaN, or the family's own error."""
    content: Any = msgspec.json.decode(answer.content)
    if answer.status_code == 200:
        assert b"NaN" not in answer.content and b"Infinity" not in answer.content
    elif operation.family is tei_error:
        assert set(content) == {"error", "error_type"} and content["error"]
    else:
        assert content["error"]["message"] and content["error"]["type"]
