"""Text Embeddings Inference's and Baseten's classification; scores of pairs for the reranking routes."""

from typing import Any

import msgspec

from bei.errors import InputError
from bei.runtime.executor import Output
from bei.runtime.http.errors import tei_error
from bei.runtime.http.inputs import check_count, check_texts
from bei.runtime.http.operation import Answer, Call, Operation
from bei.runtime.http.tei import TeiRequest, truncation
from bei.runtime.tokenizer import Input


class PredictRequest(TeiRequest, kw_only=True):
    """POST /predict. ``inputs``: a text; a list of one or two texts, which is one text or pair; or a list of such lists."""

    inputs: str | list[str | list[str]]
    raw_scores: bool = False


class Prediction(msgspec.Struct, kw_only=True):
    """A label's probability (a sigmoid each where a text may have several labels, else a softmax), or its logit."""

    score: float
    label: str


async def predict(call: Call, body: PredictRequest) -> Answer:
    service = call.served.choose(body.model, "classify", "rerank")
    inputs, single = predict_inputs(body.inputs)
    result = await service.score(
        inputs,
        truncation=truncation(service, body.truncate, body.truncation_direction),
        raw=body.raw_scores,
    )
    labels = service.manifest.head.labels
    content = [ranked(row, labels) for row in result.scores]
    return Answer(
        content=content[0] if single else content,
        numbers=result.scores.size,
        service=service,
        work=result.work,
    )


def predict_inputs(given: str | list[str | list[str]]) -> tuple[list[Input], bool]:
    """Texts and pairs, and whether the answer is one list. Raises InputError."""
    if isinstance(given, str):
        given = [given]
    check_count(given, "inputs")
    flat = [item for item in given if isinstance(item, str)]
    if len(flat) == len(given):
        return [text_or_pair(flat, "inputs")], True
    if flat:
        raise InputError(
            "inputs: mixes texts and lists. A batch is a list of lists of one or two texts each."
        )
    return [text_or_pair(item, f"inputs {index}") for index, item in enumerate(given)], False


def text_or_pair(texts: Any, field: str) -> Input:
    check_texts(["".join(texts)], field)
    if len(texts) > 2:
        raise InputError(f"{field}: {len(texts)} texts, need one or a pair.")
    return tuple(texts) if len(texts) == 2 else texts[0]


def ranked(scores: Output, labels: tuple[str, ...]) -> list[Prediction]:
    """Highest first; equal scores in the order of the labels."""
    order = (-scores).argsort(kind="stable")
    return [Prediction(score=float(scores[index]), label=labels[index]) for index in order]


OPERATIONS = (
    Operation(
        name="predict",
        paths=("/predict",),
        summary="The labels of texts or pairs, highest score first.",
        handle=predict,
        tag="TEI",
        body=PredictRequest,
        gives=(list[list[Prediction]], list[Prediction]),
        family=tei_error,
    ),
)
