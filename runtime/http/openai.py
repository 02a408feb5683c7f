"""OpenAI's embeddings, with the extension fields of vLLM, NVIDIA NIM and Text Embeddings Inference.

Unknown request fields are ignored: SDKs add them.
"""

from binascii import b2a_base64
from typing import Any, Literal

import msgspec

from bei.errors import EmptyInput, InputError
from bei.runtime.executor import Output
from bei.runtime.http.operation import Answer, Call, Operation
from bei.runtime.service import Service, Truncation
from bei.runtime.tokenizer import Input

MAX_ITEMS = 2048
"""OpenAI's limit on the inputs of one request."""


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """POST /v1/embeddings. ``input``: a text, a list of texts, token ids (one document), or a list of token-id lists.

    ``truncate``: true or "END" cuts a long input's end (the default), "START" its beginning, false or "NONE" refuses
    it. ``truncate_prompt_tokens`` cuts to fewer tokens than the model takes (−1: to as many).
    """

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    prompt_name: str | None = None
    input_type: str | None = None
    normalize: bool | None = None
    truncate: bool | Literal["NONE", "START", "END"] | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None


class Usage(msgspec.Struct, kw_only=True):
    """Tokens run, special tokens and prompt included, after truncation."""

    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct, kw_only=True):
    """One input's vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingList(msgspec.Struct, kw_only=True):
    """The answer of POST /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


async def embeddings(call: Call, body: EmbeddingRequest) -> Answer:
    service = call.served.choose(body.model, "embed")
    result = await service.embed(
        parse_input(body.input),
        truncation=truncation(service, body),
        prompt_name=body.prompt_name,
        input_type=body.input_type,
        dimensions=body.dimensions,
        normalize=True if call.settings.always_normalize else body.normalize,
        timeout=call.timeout,
    )
    write = _base64 if body.encoding_format == "base64" else _numbers
    data = [Embedding(index=index, embedding=write(row)) for index, row in enumerate(result.vectors)]
    usage = Usage(prompt_tokens=result.tokens, total_tokens=result.tokens)
    return Answer(
        content=EmbeddingList(data=data, model=service.name, usage=usage),
        numbers=result.vectors.size,
        headers={"x-truncated": str(result.truncated)} if result.truncated else {},
    )


def parse_input(given: str | list[str | int | list[int]]) -> list[Input]:
    """The inputs: a text is one, a flat list of integers is one document of token ids. Raises InputError."""
    if isinstance(given, str):
        given = [given]
    numbers = sum(isinstance(item, int) for item in given)
    inputs: list[Any] = [given] if given and numbers == len(given) else given
    if numbers and inputs is given:
        raise InputError(
            "input: mixes token ids with other items. Send texts, one list of ids, or lists of ids."
        )
    if not inputs:
        raise EmptyInput("input: empty list. Send at least one text.")
    if len(inputs) > MAX_ITEMS:
        raise InputError(f"input: {len(inputs)} items, at most {MAX_ITEMS} fit in one request.")
    for index, item in enumerate(inputs):
        if item == "":
            raise InputError(f"input {index}: empty string. Leave it out, or send a space.")
    return inputs


def truncation(service: Service, body: EmbeddingRequest) -> Truncation:
    """How long inputs are handled: cut at the end unless the request says otherwise."""
    limit = None if body.truncate_prompt_tokens == -1 else body.truncate_prompt_tokens
    side = body.truncation_side or ("left" if body.truncate == "START" else "right")
    return service.truncation(limit, allowed=body.truncate not in (False, "NONE"), side=side)


def _numbers(row: Output) -> Any:
    return row


def _base64(row: Output) -> str:
    return b2a_base64(row.astype("<f4", copy=False).tobytes(), newline=False).decode()


OPERATIONS = (
    Operation(
        name="create_embedding",
        paths=("/v1/embeddings", "/embeddings", "/openai/v1/embeddings"),
        summary="Embeddings of texts or token ids.",
        handle=embeddings,
        tag="openai",
        body=EmbeddingRequest,
        gives=EmbeddingList,
    ),
)
