"""Answers as bytes: JSON, MessagePack or raw numbers, as the client accepts them, zstd where it helps."""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import orjson
import zstandard
from starlette.datastructures import Headers
from starlette.responses import Response

from bei.runtime.http.operation import Answer

JSON, MSGPACK, RAW = "application/json", "application/msgpack", "application/octet-stream"
NAMES = {
    JSON: JSON,
    MSGPACK: MSGPACK,
    "application/x-msgpack": MSGPACK,
    "application/vnd.msgpack": MSGPACK,
    RAW: RAW,
}

SMALL_ANSWER = 1 << 15
"""Numbers in an answer that is quicker to write in the event loop than to hand to a thread."""

COMPRESS_FROM = 4096
"""Bytes."""

ZSTD_LEVEL = 1


async def respond(answer: Answer, asked: Headers, headers: Mapping[str, str]) -> Response:
    """The answer in the form that the request's headers ask for."""
    if answer.content is None:
        return Response(headers=headers)
    media = media_type(asked.get("accept", ""), raw=answer.rows is not None)
    zstd = quality(asked.get("accept-encoding", "")).get("zstd", 0) > 0
    small = answer.numbers <= SMALL_ANSWER
    content, packed = (
        write(answer, media, zstd) if small else await asyncio.to_thread(write, answer, media, zstd)
    )
    headers = {**headers, "vary": "accept, accept-encoding"}
    if packed:
        headers["content-encoding"] = "zstd"
    if media == RAW and answer.rows is not None:
        headers["x-shape"] = ",".join(map(str, answer.rows.shape))
        headers["x-dtype"] = answer.rows_dtype
    return Response(content, headers=headers, media_type=media)


def media_type(accept: str, *, raw: bool) -> str:
    """The best of what the client accepts; of equals MessagePack, which both sides handle faster. JSON when in doubt."""
    wanted = {NAMES[name]: q for name, q in quality(accept).items() if name in NAMES and q > 0}
    if not raw:
        wanted.pop(RAW, None)
    return max((RAW, MSGPACK, JSON), key=lambda name: wanted.get(name, 0)) if wanted else JSON


def quality(header: str) -> dict[str, float]:
    """A list header's names in lower case and their q; what cannot be read counts as 1."""
    found = {}
    for item in header.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        weight = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        found[name] = float(weight) if weight.replace(".", "", 1).isdecimal() else 1.0
    return found


def write(answer: Answer, media: str, zstd: bool) -> tuple[bytes, bool]:
    """The body, and whether it is compressed."""
    if media == RAW and answer.rows is not None:
        content = answer.rows.tobytes()
    elif media == MSGPACK:
        content = msgspec.msgpack.encode(answer.content, enc_hook=_msgpack_array)
    else:
        content = msgspec.json.encode(answer.content, enc_hook=_json_array)
    if not zstd or len(content) < COMPRESS_FROM:
        return content, False
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(content), True


def _json_array(value: Any) -> Any:
    """A row at a time, so that a big answer does not hold up other threads; each number as the shortest that reads back
    as the same single-precision number, which msgspec itself would write as a double."""
    if not isinstance(value, np.ndarray):
        raise NotImplementedError(type(value))
    if value.ndim > 1:
        return list(value)
    return msgspec.Raw(orjson.dumps(np.ascontiguousarray(value), option=orjson.OPT_SERIALIZE_NUMPY))


def _msgpack_array(value: Any) -> Any:
    """A row as an array of single-precision numbers, which msgspec itself would write as doubles."""
    if not isinstance(value, np.ndarray):
        raise NotImplementedError(type(value))
    if value.ndim > 1:
        return list(value)
    if value.dtype != np.float32:
        return value.tolist()
    cells = np.empty((len(value), 5), np.uint8)
    cells[:, 0] = 0xCA  # float 32
    cells[:, 1:] = value.astype(">f4").view(np.uint8).reshape(-1, 4)
    return msgspec.Raw(b"\xdd" + len(value).to_bytes(4, "big") + cells.tobytes())  # array 32
