"""Baseten's token classification. Its /predict, /rerank and /v1/embeddings are TEI's and OpenAI's."""

from typing import Annotated

import msgspec

from bei.errors import InputError
from bei.runtime.entities import Entity, Strategy
from bei.runtime.http.errors import tei_error
from bei.runtime.http.inputs import check_count, check_texts
from bei.runtime.http.operation import Answer, Call, Operation
from bei.runtime.http.tei import TeiRequest, truncation


class TokensRequest(TeiRequest, kw_only=True):
    """POST /predict_tokens. ``inputs``: texts, or lists of one text each. ``stride``: read a long text in windows that
    overlap by so many tokens, instead of cutting it."""

    inputs: list[str | list[str]]
    raw_scores: bool = False
    aggregation_strategy: Strategy = "none"
    stride: Annotated[int, msgspec.Meta(ge=0)] | None = None


class TokenResult(msgspec.Struct, kw_only=True):
    """A token (strategy none) or an entity: what stands at ``start`` … ``end`` (characters) of the text. ``results`` is
    the label and its probability, or with ``raw_scores`` every label and its logit. ``token_id`` is 0 for an entity."""

    token: str
    token_id: int
    start: int
    end: int
    results: dict[str, float]


async def predict_tokens(call: Call, body: TokensRequest) -> Answer:
    service = call.served.choose(body.model, "token-classify")
    result = await service.tag(
        single_texts(body.inputs),
        truncation=truncation(service, body.truncate, body.truncation_direction),
        strategy=body.aggregation_strategy,
        stride=body.stride,
    )
    labels = service.manifest.head.labels if body.raw_scores else None
    content = [[token_result(entity, labels) for entity in found] for found in result.entities]
    return Answer(content=content, numbers=sum(map(len, content)), service=service, work=result.work)


def single_texts(given: list[str | list[str]]) -> list[str]:
    """Raises InputError for a list of several texts: what that would mean is nowhere said."""
    check_count(given, "inputs")
    texts = []
    for index, item in enumerate(given):
        if isinstance(item, str):
            texts.append(item)
        elif len(item) == 1:
            texts.append(item[0])
        else:
            raise InputError(
                f"inputs {index}: {len(item)} texts in one list, need one. Send each text by itself."
            )
    check_texts(texts, "inputs")
    return texts


def token_result(entity: Entity, labels: tuple[str, ...] | None) -> TokenResult:
    """With every one of ``labels``, or with the entity's own where there are none."""
    if labels is None:
        results = {entity.label: entity.score}
    else:
        results = dict(zip(labels, entity.logits.tolist(), strict=True))
    return TokenResult(
        token=entity.text, token_id=entity.token_id, start=entity.start, end=entity.end, results=results
    )


OPERATIONS = (
    Operation(
        name="predict_tokens",
        paths=("/predict_tokens",),
        summary="The tokens or entities of texts, with their labels.",
        handle=predict_tokens,
        tag="Baseten",
        body=TokensRequest,
        gives=list[list[TokenResult]],
        family=tei_error,
    ),
)
