"""The one-route contracts of cloud platforms: SageMaker's /invocations, Vertex AI's /vertex, and TEI's POST /."""

import asyncio
from typing import Any

import msgspec

from bei.errors import InputError
from bei.manifest import Task
from bei.runtime.http import baseten, rerank, tei, tei_scores
from bei.runtime.http.errors import tei_error
from bei.runtime.http.inputs import check_count
from bei.runtime.http.operation import Answer, Call, Operation

TYPED = {
    operation.name: operation
    for operation in (
        *tei.OPERATIONS,
        *tei_scores.OPERATIONS,
        *rerank.OPERATIONS[:1],
        *baseten.OPERATIONS,
    )
}
"""By the name that an instance's ``type`` may give."""

OF_TASK: dict[Task, str] = {
    "embed": "embed",
    "embed-tokens": "embed_all",
    "classify": "predict",
    "rerank": "rerank",
    "token-classify": "predict_tokens",
}


class VertexRequest(msgspec.Struct, kw_only=True):
    """POST /vertex. Each instance is the body of another route: of the one its ``type`` names, else of the model's own."""

    instances: list[dict[str, Any]]


class VertexAnswer(msgspec.Struct, kw_only=True):
    """One prediction an instance, in order."""

    predictions: list[Any]


class Addressee(msgspec.Struct, kw_only=True):
    """What of a body says whom it is for."""

    type: str | None = None
    model: str | None = None
    inputs: Any = None


async def invocations(call: Call, body: dict[str, Any]) -> Answer:
    """The body of /predict, /rerank, /embed or /predict_tokens, by what the model does; of /similarity if it looks so."""
    operation = TYPED[_name_of(call, msgspec.convert(body, Addressee))]
    return await operation.handle(call, msgspec.convert(body, operation.body))


async def vertex(call: Call, body: VertexRequest) -> Answer:
    check_count(body.instances, "instances")
    tasks = [asyncio.ensure_future(invocations(call, instance)) for instance in body.instances]
    try:
        answers = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()  # those that are left when one has failed
    content = VertexAnswer(predictions=[answer.content for answer in answers])
    return Answer(content=content, numbers=sum(answer.numbers for answer in answers))


def _name_of(call: Call, body: Addressee) -> str:
    """Which operation a body is for. Raises InputError."""
    if body.type is not None:
        if body.type not in TYPED:
            raise InputError(f"type: got {body.type!r}, need one of {', '.join(TYPED)}.")
        return body.type
    if isinstance(body.inputs, dict) and "source_sentence" in body.inputs:
        return "similarity"
    return OF_TASK[call.served.any(body.model).manifest.head.task]


OPERATIONS = (
    Operation(
        name="invocations",
        paths=("/invocations", "/"),
        summary="What the model is made for: the body of /embed, /predict, /rerank or /predict_tokens.",
        handle=invocations,
        tag="clouds",
        body=dict[str, Any],
        gives=Any,
        family=tei_error,
    ),
    Operation(
        name="vertex",
        paths=("/vertex",),
        summary="Several such bodies in one request, as Vertex AI sends them.",
        handle=vertex,
        tag="clouds",
        body=VertexRequest,
        gives=VertexAnswer,
        family=tei_error,
    ),
)
