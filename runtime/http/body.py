"""Request bodies: read and decompressed within a limit, then decoded.

The limit counts a body as it comes and as it unpacks, so a small one cannot become a big one.
"""

import asyncio
import io
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
import zstandard
from starlette.requests import Request

from bei.runtime.http.errors import MEDIA_TYPE, SYNTAX, TOO_LARGE, Refusal

ZSTD_WINDOW = 8 << 20
"""Memory a zstd frame may ask for (RFC 9659: senders of HTTP stay below)."""

GZIP = 31
"""zlib's window bits for a gzip header and 32 KiB."""

SMALL_BODY = 1 << 16
"""Bytes that are quicker to unpack in the event loop than in a thread."""


async def read_body(request: Request, kind: Any, max_bytes: int) -> Any:
    """The body as ``kind``. Raises Refusal (413, 415) and msgspec's errors."""
    check_json(request.headers.get("content-type", ""))
    unpack = unpacker(request.headers.get("content-encoding", ""))
    content: bytes | bytearray = await _content(request, max_bytes)
    if unpack is not None:
        if len(content) <= SMALL_BODY:
            content = unpack(content, max_bytes)
        else:
            content = await asyncio.to_thread(unpack, content, max_bytes)
    return msgspec.json.decode(content, type=kind)


def check_json(content_type: str) -> None:
    """Refuse what says that it is something else; what says nothing is taken for JSON."""
    media = content_type.split(";")[0].strip().lower()
    if media and media != "application/json" and not media.endswith("+json"):
        raise Refusal(MEDIA_TYPE, f"content-type: got {media!r}, need application/json")


async def _content(request: Request, max_bytes: int) -> bytearray:
    size = request.headers.get("content-length", "")
    if size.isdecimal() and int(size) > max_bytes:
        raise Refusal(TOO_LARGE, f"the body has {size} bytes, at most {max_bytes} are read")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > max_bytes:
            raise Refusal(TOO_LARGE, f"the body has more than {max_bytes} bytes")
    return content


def unpacker(encoding: str) -> Callable[[bytes | bytearray, int], bytes] | None:
    """What undoes a content-encoding; None where there is nothing to undo. Raises Refusal."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return None
    if name not in UNPACKERS:
        raise Refusal(MEDIA_TYPE, f"content-encoding: got {name!r}, need {', '.join(UNPACKERS)} or identity")
    return UNPACKERS[name]


def _gunzip(content: bytes | bytearray, max_bytes: int) -> bytes:
    stream = zlib.decompressobj(GZIP)
    try:
        unpacked = stream.decompress(content, max_bytes + 1)
    except zlib.error as error:
        raise Refusal(SYNTAX, f"body: not valid gzip ({error})") from None
    _check_size(unpacked, max_bytes)
    if not stream.eof or stream.unused_data:
        raise Refusal(SYNTAX, "body: not valid gzip (cut off, or something follows)")
    return unpacked


def _unzstd(content: bytes | bytearray, max_bytes: int) -> bytes:
    """A frame that is cut off unpacks to a part, which is no valid JSON."""
    library = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
    try:
        with library.stream_reader(io.BytesIO(content), read_across_frames=True) as stream:
            unpacked = stream.read(max_bytes + 1)
    except zstandard.ZstdError as error:
        raise Refusal(SYNTAX, f"body: not valid zstd ({error})") from None
    _check_size(unpacked, max_bytes)
    return unpacked


def _check_size(unpacked: bytes, max_bytes: int) -> None:
    if len(unpacked) > max_bytes:
        raise Refusal(TOO_LARGE, f"the body unpacks to more than {max_bytes} bytes")


UNPACKERS = {"gzip": _gunzip, "zstd": _unzstd}
