"""Reranking, in TEI's and Baseten's form (``texts``, a bare list) and in Cohere's and Jina's (``documents``, an object)."""

from typing import Annotated
from uuid import uuid4

import msgspec

from bei.errors import InputError
from bei.runtime.executor import Output
from bei.runtime.http.errors import tei_error
from bei.runtime.http.inputs import check_count, check_texts
from bei.runtime.http.operation import Answer, Call, Operation
from bei.runtime.http.tei import TeiRequest, truncation

Positive = Annotated[int, msgspec.Meta(ge=1)]


class TextDocument(msgspec.Struct, kw_only=True):
    """A document as an object."""

    text: str


class CohereRequest(msgspec.Struct, kw_only=True):
    """POST /v1/rerank and /v2/rerank. ``top_n``: so many of the best; ``max_tokens_per_doc``: what follows is not read."""

    query: str
    documents: list[str | TextDocument]
    top_n: Positive | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: Positive | None = None
    model: str | None = None


class RerankRequest(TeiRequest, kw_only=True):
    """POST /rerank: with ``texts`` as TEI's, with ``documents`` as Cohere's and Jina's. Exactly one of the two."""

    query: str
    texts: list[str] | None = None
    raw_scores: bool = False
    return_text: bool = False
    documents: list[str | TextDocument] | None = None
    top_n: Positive | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: Positive | None = None


class Rank(msgspec.Struct, kw_only=True, omit_defaults=True):
    """TEI's and Baseten's entry: where the text stood in the request, and its score."""

    index: int
    score: float
    text: str | None = None


class CohereRank(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Cohere's and Jina's entry."""

    index: int
    relevance_score: float
    document: TextDocument | None = None


class RerankUsage(msgspec.Struct, kw_only=True):
    """Tokens run."""

    total_tokens: int


class CohereRanking(msgspec.Struct, kw_only=True):
    """Cohere's and Jina's answer, highest score first."""

    id: str
    model: str
    results: list[CohereRank]
    usage: RerankUsage


async def rerank(call: Call, body: RerankRequest) -> Answer:
    """Which contract a body belongs to is told by its key."""
    if (body.texts is None) == (body.documents is None):
        raise InputError("texts: need either texts (TEI, Baseten) or documents (Cohere, Jina).")
    if body.documents is not None:
        return await cohere(
            call,
            CohereRequest(
                query=body.query,
                documents=body.documents,
                top_n=body.top_n,
                return_documents=body.return_documents,
                max_tokens_per_doc=body.max_tokens_per_doc,
                model=body.model,
            ),
        )
    return await tei(call, body, body.texts or [])


async def tei(call: Call, body: RerankRequest, texts: list[str]) -> Answer:
    service = call.served.choose(body.model, "rerank")
    check_texts([body.query], "query")
    check_count(texts, "texts")
    result = await service.rerank(
        body.query,
        texts,
        truncation=truncation(service, body.truncate, body.truncation_direction),
        raw=body.raw_scores,
    )
    scores = result.scores[:, 0]
    ranks = [
        Rank(index=index, score=float(scores[index]), text=texts[index] if body.return_text else None)
        for index in best_first(scores)
    ]
    return Answer(content=ranks, numbers=len(ranks), service=service, work=result.work)


async def cohere(call: Call, body: CohereRequest) -> Answer:
    service = call.served.choose(body.model, "rerank")
    check_texts([body.query], "query")
    check_count(body.documents, "documents")
    texts = [item if isinstance(item, str) else item.text for item in body.documents]
    result = await service.rerank(
        body.query, texts, truncation=service.truncation(), max_tokens=body.max_tokens_per_doc
    )
    scores = result.scores[:, 0]
    ranks = [
        CohereRank(
            index=index,
            relevance_score=float(scores[index]),
            document=TextDocument(text=texts[index]) if body.return_documents else None,
        )
        for index in best_first(scores)[: body.top_n]
    ]
    answer = CohereRanking(
        id=f"rerank-{uuid4()}",
        model=service.name,
        results=ranks,
        usage=RerankUsage(total_tokens=result.work.tokens),
    )
    return Answer(content=answer, numbers=len(ranks), service=service, work=result.work)


def best_first(scores: Output) -> list[int]:
    """Indices by score, highest first; equal ones in the order given."""
    order: list[int] = (-scores).argsort(kind="stable").tolist()
    return order


OPERATIONS = (
    Operation(
        name="rerank",
        paths=("/rerank",),
        summary="Texts by their relevance to a query, highest first.",
        handle=rerank,
        tag="TEI",
        body=RerankRequest,
        gives=(list[Rank], CohereRanking),
        family=tei_error,
    ),
    Operation(
        name="rerank_documents",
        paths=("/v1/rerank", "/v2/rerank"),
        summary="Documents by their relevance to a query, highest first.",
        handle=cohere,
        tag="Cohere and Jina",
        body=CohereRequest,
        gives=CohereRanking,
    ),
)
