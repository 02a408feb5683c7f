"""Text Embeddings Inference's routes for embeddings and tokens.

Where TEI and this server differ: token ids are used exactly, not decoded and encoded again, and ``normalize: false`` is
refused for a model whose own last step normalises.
"""

from typing import Annotated, Any, Literal

import msgspec

from bei.errors import WrongTask
from bei.runtime.http.errors import tei_error
from bei.runtime.http.inputs import Given, check_count, check_texts, documents
from bei.runtime.http.operation import Answer, Call, Operation
from bei.runtime.service import Service, Truncation

Direction = Literal["left", "Left", "right", "Right"]


class TeiRequest(msgspec.Struct, kw_only=True):
    """What TEI's requests share. ``truncate`` null means true, as TEI's own default; ``model`` is for a server of several."""

    truncate: bool | None = None
    truncation_direction: Direction = "Right"
    model: str | None = None


class EmbedRequest(TeiRequest, kw_only=True):
    """POST /embed."""

    inputs: Given
    prompt_name: str | None = None
    normalize: bool = True
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None


class TokenVectorsRequest(TeiRequest, kw_only=True):
    """POST /embed_all and /embed_sparse. As in `EmbedRequest`."""

    inputs: Given
    prompt_name: str | None = None


class SparseValue(msgspec.Struct, kw_only=True):
    """One entry of a sparse vector."""

    index: int
    value: float


class SimilarityInputs(msgspec.Struct, kw_only=True):
    """A text, and those to compare it with."""

    source_sentence: str
    sentences: list[str]


class SimilarityParameters(msgspec.Struct, kw_only=True):
    """As in `EmbedRequest`."""

    truncate: bool | None = None
    truncation_direction: Direction = "Right"
    prompt_name: str | None = None


class SimilarityRequest(msgspec.Struct, kw_only=True):
    """POST /similarity."""

    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None
    model: str | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /tokenize."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None
    model: str | None = None


class SimpleToken(msgspec.Struct, kw_only=True, omit_defaults=False):
    """A token; ``start`` and ``stop`` in characters of the text with its prompt, null for a special token."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class DecodeRequest(msgspec.Struct, kw_only=True):
    """POST /decode."""

    ids: list[int | list[int]]
    skip_special_tokens: bool = True
    model: str | None = None


def truncation(service: Service, truncate: bool | None, direction: Direction) -> Truncation:
    side: Literal["left", "right"] = "left" if direction.lower() == "left" else "right"
    return service.truncation(allowed=truncate is not False, side=side)


async def embed(call: Call, body: EmbedRequest) -> Answer:
    service = call.served.choose(body.model, "embed")
    result = await service.embed(
        documents(body.inputs, "inputs"),
        truncation=truncation(service, body.truncate, body.truncation_direction),
        prompt_name=body.prompt_name,
        dimensions=body.dimensions,
        normalize=body.normalize,
    )
    return Answer(
        content=list(result.vectors),
        numbers=result.vectors.size,
        rows=result.vectors,
        rows_dtype="float32",
        service=service,
        work=result.work,
    )


async def embed_all(call: Call, body: TokenVectorsRequest) -> Answer:
    service = call.served.choose(body.model, "embed-tokens")
    result = await service.embed_tokens(
        documents(body.inputs, "inputs"),
        truncation=truncation(service, body.truncate, body.truncation_direction),
        prompt_name=body.prompt_name,
    )
    numbers = sum(vectors.size for vectors in result.vectors)
    return Answer(content=result.vectors, numbers=numbers, service=service, work=result.work)


async def embed_sparse(call: Call, body: TokenVectorsRequest) -> Answer:
    service = call.served.choose(body.model, "embed", "embed-tokens")
    raise WrongTask(f"{service.name} gives no sparse vectors: SPLADE models cannot be compiled yet.")


async def similarity(call: Call, body: SimilarityRequest) -> Answer:
    service = call.served.choose(body.model, "embed")
    told = body.parameters or SimilarityParameters()
    check_count(body.inputs.sentences, "inputs.sentences")
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    check_texts(texts, "inputs")
    result = await service.embed(
        texts,
        truncation=truncation(service, told.truncate, told.truncation_direction),
        prompt_name=told.prompt_name,
        normalize=True,
    )
    cosines = result.vectors[1:] @ result.vectors[0]
    return Answer(content=cosines, numbers=cosines.size, service=service, work=result.work)


async def tokenize(call: Call, body: TokenizeRequest) -> Answer:
    service = call.served.any(body.model)
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    check_count(texts, "inputs")
    found = await service.tokenize(texts, special=body.add_special_tokens, prompt_name=body.prompt_name)
    return Answer(content=found, numbers=sum(map(len, found)))


async def decode(call: Call, body: DecodeRequest) -> Answer:
    service = call.served.any(body.model)
    given: Any = body.ids
    check_count(given, "ids")
    single = all(isinstance(item, int) for item in given)
    texts = await service.decode([given] if single else given, skip_special=body.skip_special_tokens)
    return Answer(content=texts)


OPERATIONS = (
    Operation(
        name="embed",
        paths=("/embed",),
        summary="Vectors, one an input.",
        handle=embed,
        tag="TEI",
        body=EmbedRequest,
        gives=list[list[float]],
        gives_rows=True,
        family=tei_error,
    ),
    Operation(
        name="embed_all",
        paths=("/embed_all",),
        summary="A vector for each token of each input, special tokens included.",
        handle=embed_all,
        tag="TEI",
        body=TokenVectorsRequest,
        gives=list[list[list[float]]],
        family=tei_error,
    ),
    Operation(
        name="embed_sparse",
        paths=("/embed_sparse",),
        summary="Sparse vectors: for SPLADE models, which cannot be compiled yet.",
        handle=embed_sparse,
        tag="TEI",
        body=TokenVectorsRequest,
        gives=list[list[SparseValue]],
        family=tei_error,
    ),
    Operation(
        name="similarity",
        paths=("/similarity",),
        summary="The cosine of a sentence with each of several.",
        handle=similarity,
        tag="TEI",
        body=SimilarityRequest,
        gives=list[float],
        family=tei_error,
    ),
    Operation(
        name="tokenize",
        paths=("/tokenize",),
        summary="The tokens of texts.",
        handle=tokenize,
        tag="TEI",
        body=TokenizeRequest,
        gives=list[list[SimpleToken]],
        family=tei_error,
    ),
    Operation(
        name="decode",
        paths=("/decode",),
        summary="Token ids back to texts.",
        handle=decode,
        tag="TEI",
        body=DecodeRequest,
        gives=list[str],
        family=tei_error,
    ),
)
