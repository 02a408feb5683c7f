"""vLLM's pooling routes: classification and the score of pairs."""

import time
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Annotated, Any, Literal
from uuid import uuid4

import msgspec

from bei.errors import InputError
from bei.runtime.http.inputs import check_count, check_texts
from bei.runtime.http.openai import Usage, usage
from bei.runtime.http.operation import Answer, Call, Operation
from bei.runtime.service import Scored, Service, Truncation, Work
from bei.runtime.tokenizer import Pair

Limit = Annotated[int, msgspec.Meta(ge=-1)]
"""Tokens; −1 for as many as the model takes."""


class ClassifyRequest(msgspec.Struct, kw_only=True):
    """POST /classify."""

    input: str | list[str]
    model: str | None = None
    truncate_prompt_tokens: Limit | None = None


class Classification(msgspec.Struct, kw_only=True):
    """The likeliest label of a text, and the probability of each in the order of the model's labels."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class ClassificationList(msgspec.Struct, kw_only=True):
    """The answer of POST /classify; ``created`` in unix seconds."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Classification]
    usage: Usage


class ScoreRequest(msgspec.Struct, kw_only=True):
    """POST /score: one text with each of several, or as many with as many. ``queries`` is another name for ``text_1``,
    ``documents`` for ``text_2``."""

    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    model: str | None = None
    truncate_prompt_tokens: Limit | None = None


class PairScore(msgspec.Struct, kw_only=True):
    """A reranker's score in 0 … 1, or the cosine of an embedding model's vectors."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreList(msgspec.Struct, kw_only=True):
    """The answer of POST /score; ``created`` in unix seconds."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[PairScore]
    usage: Usage


async def classify(call: Call, body: ClassifyRequest) -> Answer:
    service = call.served.choose(body.model, "classify")
    texts = listed(body.input, "input")
    result = await service.score(texts, truncation=truncation(service, body.truncate_prompt_tokens))
    labels = service.manifest.head.labels
    data = [
        Classification(index=index, label=labels[row.argmax()], probs=row.tolist(), num_classes=len(labels))
        for index, row in enumerate(result.scores)
    ]
    content = ClassificationList(**envelope("classify", service, result.work), data=data)
    return Answer(content=content, numbers=result.scores.size, service=service, work=result.work)


async def score(call: Call, body: ScoreRequest) -> Answer:
    service = call.served.choose(body.model, "rerank", "embed")
    measure = partial(cosines, service) if service.manifest.head.task == "embed" else service.score
    result = await measure(pair_up(body), truncation=truncation(service, body.truncate_prompt_tokens))
    data = [PairScore(index=index, score=float(row[0])) for index, row in enumerate(result.scores)]
    content = ScoreList(**envelope("score", service, result.work), data=data)
    return Answer(content=content, numbers=len(data), service=service, work=result.work)


async def cosines(service: Service, pairs: Sequence[Pair], *, truncation: Truncation) -> Scored:
    """The cosine of each pair's vectors, [n, 1]; a text that stands in several pairs is embedded once."""
    places = {text: place for place, text in enumerate(dict.fromkeys(chain.from_iterable(pairs)))}
    result = await service.embed(list(places), truncation=truncation, normalize=True)
    first, second = (result.vectors[[places[pair[side]] for pair in pairs]] for side in (0, 1))
    return Scored(scores=(first * second).sum(axis=1, keepdims=True), work=result.work)


def pair_up(body: ScoreRequest) -> list[Pair]:
    """Raises InputError."""
    first = listed(body.queries if body.text_1 is None else body.text_1, "text_1")
    second = listed(body.documents if body.text_2 is None else body.text_2, "text_2")
    if len(first) == 1:
        first = first * len(second)
    if len(first) != len(second):
        raise InputError(f"text_2: {len(second)} texts for {len(first)}, need as many, or a single text_1.")
    return list(zip(first, second, strict=True))


def listed(given: str | list[str] | None, field: str) -> list[str]:
    """Raises InputError."""
    if given is None:
        raise InputError(f"{field}: missing. Send a text or a list of texts.")
    texts = [given] if isinstance(given, str) else given
    check_count(texts, field)
    check_texts(texts, field)
    return texts


def truncation(service: Service, max_tokens: int | None) -> Truncation:
    return service.truncation(None if max_tokens == -1 else max_tokens)


def envelope(kind: str, service: Service, work: Work) -> dict[str, Any]:
    """What both answers have around their data."""
    return {
        "id": f"{kind}-{uuid4()}",
        "created": int(time.time()),
        "model": service.name,
        "usage": usage(work),
    }


OPERATIONS = (
    Operation(
        name="classify",
        paths=("/classify", "/v1/classify"),
        summary="The likeliest label of each text, and all probabilities.",
        handle=classify,
        tag="vLLM",
        body=ClassifyRequest,
        gives=ClassificationList,
    ),
    Operation(
        name="score",
        paths=("/score", "/v1/score"),
        summary="How well texts go together: a reranker's score, or the cosine of embeddings.",
        handle=score,
        tag="vLLM",
        body=ScoreRequest,
        gives=ScoreList,
    ),
)
