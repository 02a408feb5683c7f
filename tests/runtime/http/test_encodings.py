"""Bodies that come compressed, answers that leave as MessagePack, zstd or bare numbers."""

import base64
import gzip
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
import zstandard
from tests.runtime.http.test_tei import ids
from tests.runtime.serving import MAX_BODY_BYTES
from tests.runtime.tiny import DIM, expected

from bei.errors import InputError
from bei.runtime.http.encoding import JSON, MSGPACK, RAW, media_type
from bei.runtime.http.vectors import as_bytes, convert

BODY = b'{"input": ["hello", "a b"], "model": "embed"}'
VECTORS = np.stack([expected(ids("hello")), expected(ids("a b"))])


def ask(http: httpx.Client, path: str = "/v1/embeddings", **headers: str) -> httpx.Response:
    body = BODY if path == "/v1/embeddings" else BODY.replace(b"input", b"inputs")
    answer = http.post(path, content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


# Requests


def pack(encoding: str, body: bytes) -> bytes:
    return gzip.compress(body) if encoding == "gzip" else zstandard.compress(body)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_bodies_may_come_compressed(http: httpx.Client, encoding: str) -> None:
    answer = http.post("/v1/embeddings", content=pack(encoding, BODY), headers={"content-encoding": encoding})
    np.testing.assert_allclose([item["embedding"] for item in answer.json()["data"]], VECTORS, atol=1e-6)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_bomb_is_refused(http: httpx.Client, encoding: str) -> None:
    bomb = pack(encoding, b'{"input": "' + b" " * (64 << 20) + b'"}')
    assert len(bomb) < MAX_BODY_BYTES
    answer = http.post("/v1/embeddings", content=bomb, headers={"content-encoding": encoding})
    assert answer.status_code == 413
    assert "unpacks to more than" in answer.json()["error"]["message"]


def test_a_zstd_frame_that_asks_for_much_memory_is_refused(http: httpx.Client) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = stream.compress(BODY) + stream.flush()
    answer = http.post("/v1/embeddings", content=frame, headers={"content-encoding": "zstd"})
    assert answer.status_code == 400


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9], lambda b: b"", lambda b: b"\0" * 50, lambda b: b + b"x"]
)
def test_damaged_bodies_are_bad_requests(http: httpx.Client, encoding: str, damage: Any) -> None:
    answer = http.post(
        "/v1/embeddings", content=damage(pack(encoding, BODY)), headers={"content-encoding": encoding}
    )
    assert answer.status_code == 400


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, zstd", "x"])
def test_other_encodings_are_415(http: httpx.Client, encoding: str) -> None:
    answer = http.post("/v1/embeddings", content=BODY, headers={"content-encoding": encoding})
    assert answer.status_code == 415
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "application/x+json"]
)
def test_json_has_many_names(http: httpx.Client, kind: str) -> None:
    ask(http, **{"content-type": kind, "content-encoding": "identity"})


# Answers


def test_message_pack_holds_single_precision(http: httpx.Client) -> None:
    answer = ask(http, accept="application/msgpack")
    assert answer.headers["content-type"] == MSGPACK
    body = msgspec.msgpack.decode(answer.content)
    assert list(body) == ["object", "data", "model", "usage"]
    got = np.array([item["embedding"] for item in body["data"]], np.float32)
    as_json = np.array([item["embedding"] for item in ask(http).json()["data"]], np.float32)
    np.testing.assert_array_equal(got, as_json)
    assert answer.content.count(b"\xca") >= 2 * DIM


def test_message_pack_on_every_route(http: httpx.Client) -> None:
    for path, body in (
        ("/embed", {"inputs": "a"}),
        ("/predict", {"inputs": "a"}),
        ("/rerank", {"query": "a", "texts": ["b"]}),
        ("/v1/rerank", {"query": "a", "documents": ["b"]}),
        ("/predict_tokens", {"inputs": ["a"]}),
        ("/classify", {"input": "a"}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
    ):
        packed = http.post(path, json=body, headers={"accept": "application/msgpack"})
        assert packed.headers["content-type"] == MSGPACK, packed.text
        plain: Any = http.post(path, json=body).json()
        unpacked = msgspec.msgpack.decode(packed.content)
        for answer in (plain, unpacked):
            if isinstance(answer, dict):
                answer.pop("id", None)
                answer.pop("created", None)
        assert single(plain) == single(unpacked)


def single(value: Any) -> Any:
    """Every number of an answer in the precision that it was computed in."""
    if isinstance(value, list):
        return [single(item) for item in value]
    if isinstance(value, dict):
        return {key: single(item) for key, item in value.items()}
    return float(np.float32(value)) if isinstance(value, float) else value


def test_json_has_the_shortest_number_that_is_exact(http: httpx.Client) -> None:
    answer = ask(http)
    exact = np.frombuffer(ask(http, accept="application/octet-stream").content, np.float32)
    got = [number for item in answer.json()["data"] for number in item["embedding"]]
    np.testing.assert_array_equal(np.array(got, np.float32), exact)
    assert all(number == float(np.format_float_scientific(x)) for number, x in zip(got, exact, strict=True))


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed"])
def test_bare_numbers(http: httpx.Client, path: str) -> None:
    answer = ask(http, path, accept="application/octet-stream")
    assert answer.headers["content-type"] == RAW
    assert (answer.headers["x-shape"], answer.headers["x-dtype"]) == ("2,8", "float32")
    np.testing.assert_allclose(np.frombuffer(answer.content, "<f4").reshape(2, 8), VECTORS, atol=1e-6)


def test_large_answers_are_compressed_for_those_who_can(http: httpx.Client) -> None:
    texts = {"input": ["a"] * 100, "model": "embed"}
    sizes = {}
    for accepted in ("zstd", "gzip, zstd;q=0", "identity"):
        with http.stream(
            "POST", "/v1/embeddings", json=texts, headers={"accept-encoding": accepted}
        ) as answer:
            raw = b"".join(answer.iter_raw())
        sizes[accepted] = len(raw)
        assert answer.headers.get("content-encoding") == ("zstd" if accepted == "zstd" else None)
        assert answer.headers["vary"] == "accept, accept-encoding"
        assert int(answer.headers["content-length"]) == len(raw)
    assert sizes["zstd"] < sizes["identity"] / 4
    assert len(ask(http, **{"accept-encoding": "zstd"}).json()["data"]) == 2


@pytest.mark.parametrize(
    ("accept", "raw", "chosen"),
    [
        ("", True, JSON),
        ("*/*", True, JSON),
        ("text/html", True, JSON),
        ("application/json", True, JSON),
        ("application/json, application/msgpack", True, MSGPACK),
        ("application/json, application/msgpack;q=0.5", True, JSON),
        ("application/msgpack;q=0", True, JSON),
        ("APPLICATION/X-MSGPACK", False, MSGPACK),
        ("application/octet-stream", True, RAW),
        ("application/octet-stream", False, JSON),
        ("application/octet-stream, application/msgpack", False, MSGPACK),
        ("application/msgpack;q=x;;,,;", False, MSGPACK),
    ],
)
def test_what_is_accepted(accept: str, raw: bool, chosen: str) -> None:
    assert media_type(accept, raw=raw) == chosen


# Number types


def embed(http: httpx.Client, **options: Any) -> list[Any]:
    answer = http.post("/v1/embeddings", json={"input": ["hello", "a b"], "model": "embed", **options})
    assert answer.status_code == 200, answer.text
    return [item["embedding"] for item in answer.json()["data"]]


def test_half_precision(http: httpx.Client) -> None:
    half = np.array(embed(http, embed_dtype="float16"), np.float32)
    np.testing.assert_array_equal(half, half.astype(np.float16))
    np.testing.assert_allclose(half, VECTORS, rtol=2**-11, atol=1e-7)
    brain = np.array(embed(http, embed_dtype="bfloat16"), np.float32)
    assert not (brain.view(np.uint32) & 0xFFFF).any()
    np.testing.assert_allclose(brain, VECTORS, rtol=2**-8)


def test_int8_keeps_directions(http: httpx.Client) -> None:
    got = np.array(embed(http, embed_dtype="int8"))
    assert got.dtype == np.int64
    assert np.abs(got).max(axis=1).tolist() == [127, 127]
    cosine = (got * VECTORS).sum(axis=1) / np.linalg.norm(got, axis=1)
    np.testing.assert_allclose(cosine, 1, atol=1e-4)


def test_bits_are_packed_as_sentence_transformers_packs_them(http: httpx.Client) -> None:
    unsigned = np.packbits(VECTORS > 0, axis=1)
    assert embed(http, embed_dtype="ubinary") == unsigned.tolist()
    assert embed(http, embed_dtype="binary") == (unsigned.astype(int) - 128).tolist()


@pytest.mark.parametrize("order", ["little", "big", "native"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_base64_has_a_type_and_an_order(http: httpx.Client, dtype: str, order: str) -> None:
    shown = embed(http, embed_dtype=dtype)
    packed = embed(http, embed_dtype=dtype, encoding_format="base64", endianness=order)
    prefix = {"little": "<", "big": ">", "native": "="}[order]
    kind = prefix + np.dtype(dtype).str[1:]
    for row, text in zip(shown, packed, strict=True):
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(text), kind), np.array(row, kind))


def test_bytes_of_other_types(http: httpx.Client) -> None:
    body = {"input": ["hello", "a b"], "model": "embed", "embed_dtype": "ubinary"}
    answer = http.post("/v1/embeddings", json=body, headers={"accept": "application/octet-stream"})
    assert (answer.headers["x-shape"], answer.headers["x-dtype"]) == ("2,1", "ubinary")
    assert answer.content == np.packbits(VECTORS > 0, axis=1).tobytes()


def test_bfloat16_rounds_to_the_nearest_even() -> None:
    exact = np.array([[1.0, -2.5, 0.0]], np.float32)
    assert convert(exact, "bfloat16").tolist() == exact.tolist()
    tie = np.array([0x3F808000, 0x3F818000, 0x3F808001], np.uint32).view(np.float32)[None]
    assert as_bytes(tie, "bfloat16")[0].tolist() == [0x3F80, 0x3F82, 0x3F81]


def test_a_zero_row_stays_zero_in_int8() -> None:
    assert convert(np.zeros((1, 3), np.float32), "int8").tolist() == [[0, 0, 0]]


def test_what_float16_cannot_hold_is_refused() -> None:
    with pytest.raises(InputError, match="float16 ends at 65504, a vector has 70000"):
        convert(np.array([[70000.0]], np.float32), "float16")


# Truncation, told


def test_which_inputs_lost_how_many_tokens(http: httpx.Client) -> None:
    body = {"input": ["a", "b " * 20, "c " * 15], "model": "embed"}
    plain = http.post("/v1/embeddings", json=body)
    assert plain.headers["x-truncated"] == "2"
    assert "x-truncated-rows" not in plain.headers
    told = http.post("/v1/embeddings", json=body, headers={"x-truncation-detail": "true"})
    assert told.headers["x-truncated-rows"] == "1:6,2:1"
