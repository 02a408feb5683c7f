"""Answers as bytes."""

import asyncio
from typing import Any

import msgspec
import numpy as np
from starlette.responses import Response

from bei.runtime.http.operation import Answer

SMALL_ANSWER = 1 << 15
"""Numbers in an answer that is quicker to write in the event loop than to hand to a thread."""


async def respond(answer: Answer) -> Response:
    """The answer as JSON."""
    if answer.content is None:
        return Response(status_code=answer.status, headers=answer.headers)
    small = answer.numbers <= SMALL_ANSWER
    content = write_json(answer.content) if small else await asyncio.to_thread(write_json, answer.content)
    return Response(content, answer.status, answer.headers, "application/json")


def write_json(content: Any) -> bytes:
    """Each array goes through Python's own code on its way: a big answer does not hold up other threads."""
    return msgspec.json.encode(content, enc_hook=_array)


def _array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise NotImplementedError(type(value))
