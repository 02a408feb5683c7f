"""OpenAI's embeddings, with the extension fields of vLLM, NVIDIA NIM and Text Embeddings Inference.

Unknown request fields are ignored: SDKs add them.
"""

from typing import Annotated, Literal

import msgspec

from bei.runtime.http.inputs import Given, documents
from bei.runtime.http.operation import Answer, Call, Operation
from bei.runtime.http.served import Served
from bei.runtime.http.vectors import Dtype, Endianness, as_base64, as_bytes, convert
from bei.runtime.service import Service, Truncation, Work

INPUT_TYPE_SUFFIXES = ("query", "passage")


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """POST /v1/embeddings. ``input``: a text, a list of texts, token ids (one document), or a list of token-id lists.

    ``truncate``: true or "END" cuts a long input's end (the default), "START" its beginning, false or "NONE" refuses
    it. ``truncate_prompt_tokens`` cuts to fewer tokens than the model takes (−1: to as many). ``prompt_name`` or
    ``input_type`` put one of the model's prompts before each text; so does a ``model`` that ends in -query or -passage.
    ``embed_dtype`` is the type of the numbers, ``endianness`` their byte order in base64.
    """

    input: Given
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    prompt_name: str | None = None
    input_type: str | None = None
    normalize: bool | None = None
    truncate: bool | Literal["NONE", "START", "END"] | None = None
    truncate_prompt_tokens: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    embed_dtype: Dtype | None = None
    endianness: Endianness | None = None


class Usage(msgspec.Struct, kw_only=True):
    """Tokens run, special tokens and prompt included, after truncation."""

    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct, kw_only=True):
    """One input's vector: numbers, or base64 of them (little-endian float32 unless the request says otherwise)."""

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
    name, input_type = split_input_type(call.served, body.model)
    service = call.served.choose(name, "embed")
    result = await service.embed(
        documents(body.input, "input"),
        truncation=truncation(service, body),
        prompt_name=body.prompt_name,
        input_type=body.input_type or input_type,
        dimensions=body.dimensions,
        normalize=True if call.settings.always_normalize else body.normalize,
    )
    dtype = body.embed_dtype or "float32"
    rows = as_bytes(result.vectors, dtype, body.endianness or "little")
    shown = as_base64(rows) if body.encoding_format == "base64" else convert(result.vectors, dtype)
    data = [Embedding(index=index, embedding=row) for index, row in enumerate(shown)]
    return Answer(
        content=EmbeddingList(data=data, model=service.name, usage=usage(result.work)),
        numbers=rows.size,
        rows=rows,
        rows_dtype=dtype,
        service=service,
        work=result.work,
    )


def split_input_type(served: Served, model: str | None) -> tuple[str | None, str | None]:
    """NIM's way to say the input type: the served name, a dash, and query or passage."""
    stem, dash, suffix = (model or "").rpartition("-")
    if dash and suffix in INPUT_TYPE_SUFFIXES and not served.find(model or "") and served.find(stem):
        return stem, suffix
    return model, None


def truncation(service: Service, body: EmbeddingRequest) -> Truncation:
    """How long inputs are handled: cut at the end unless the request says otherwise."""
    limit = None if body.truncate_prompt_tokens == -1 else body.truncate_prompt_tokens
    side = body.truncation_side or ("left" if body.truncate == "START" else "right")
    return service.truncation(limit, allowed=body.truncate not in (False, "NONE"), side=side)


def usage(work: Work) -> Usage:
    return Usage(prompt_tokens=work.tokens, total_tokens=work.tokens)


OPERATIONS = (
    Operation(
        name="create_embedding",
        paths=("/v1/embeddings", "/embeddings", "/openai/v1/embeddings"),
        summary="Embeddings of texts or token ids.",
        handle=embeddings,
        tag="OpenAI",
        body=EmbeddingRequest,
        gives=EmbeddingList,
        gives_rows=True,
    ),
)
