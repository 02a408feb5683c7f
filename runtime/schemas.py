"""The wire formats of the HTTP API. Unknown request fields are ignored: SDKs add them.

Facts: OpenAI's API reference; extension fields as vLLM, NVIDIA NIM and Text Embeddings Inference name them.
"""

from binascii import b2a_base64
from typing import Literal

import msgspec

from bei.runtime.executor import Output

MAX_ITEMS = 2048
"""OpenAI's limit on the inputs of one request."""


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """POST /v1/embeddings. ``input``: a text, a list of texts, token ids (one document), or a list of token-id lists.

    ``model`` is accepted and not compared with the served name. ``truncate``: true or "END" cuts a long input's end
    (the default), "START" its beginning, false or "NONE" refuses it. ``truncate_prompt_tokens`` cuts to fewer tokens
    than the model takes (−1: to as many).
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


class ModelCard(msgspec.Struct, kw_only=True):
    """One entry of GET /v1/models; ``created`` in unix seconds."""

    id: str
    created: int
    object: str = "model"
    owned_by: str = "bei"


class ModelList(msgspec.Struct, kw_only=True):
    """GET /v1/models."""

    data: list[ModelCard]
    object: str = "list"


class ErrorDetail(msgspec.Struct, kw_only=True):
    """OpenAI's error object; ``param`` names the request field at fault."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, kw_only=True):
    """OpenAI's envelope, and beside it the flat fields that clients of Text Embeddings Inference read."""

    error: ErrorDetail
    message: str
    type: str
    code: int


def embedding_body(vectors: Output, *, model: str, tokens: int, base64: bool) -> bytes:
    """The response of POST /v1/embeddings: float32 [n, d] as numbers, or as base64 of little-endian float32.

    Written row by row: one call over a large answer would keep every other thread waiting.
    """
    encode = _base64 if base64 else _numbers
    rows = (
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, encode(row))
        for index, row in enumerate(vectors)
    )
    usage = msgspec.json.encode(Usage(prompt_tokens=tokens, total_tokens=tokens))
    name = msgspec.json.encode(model)
    return b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (b",".join(rows), name, usage)


def _numbers(row: Output) -> bytes:
    return msgspec.json.encode(row.tolist())


def _base64(row: Output) -> bytes:
    return b'"%b"' % b2a_base64(row.astype("<f4", copy=False).tobytes(), newline=False)
