"""The header reader: it agrees with the safetensors library, and refuses everything that lies."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from tests.compiler.checkpoint import tiny

from bei.compiler.checkpoint.safetensors import INDEX, MAX_HEADER, SINGLE, read_header, read_tensors
from bei.errors import CheckpointError

FILE = "model.safetensors"


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file from its parts; ``length`` is what it claims about its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str, shape: list[Any], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_reads_what_the_library_wrote(tmp_path: Path) -> None:
    tensors: tiny.Tensors = {
        "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
        "f16": np.ones((3,), np.float16),
        "bf16": np.full((2, 2), 1.5, ml_dtypes.bfloat16),
        "i64": np.arange(4).reshape(1, 4),
        "scalar": np.array(7.0),
        "empty": np.zeros((0, 5), np.float32),
        "bool": np.array([True, False]),
    }
    tiny.write(tmp_path, {FILE: save(tensors, {"format": "pt"})})
    found = read_header(tmp_path, FILE)
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        array = found[name].array(tmp_path)
        assert array.dtype == value.dtype and array.shape == value.shape
        np.testing.assert_array_equal(array, value)


def test_metadata_is_optional_and_padding_is_allowed(tmp_path: Path) -> None:
    for padding in (b"", b"   "):
        header = json.dumps({"w": entry("F32", [1], 0, 4)}).encode() + padding
        tiny.write(tmp_path, {FILE: raw(header, b"\0\0\x80?")})
        np.testing.assert_array_equal(read_header(tmp_path, FILE)["w"].array(tmp_path), [1.0])


W = {"w": entry("F32", [2], 0, 8)}
DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes long, too short"),
        (b"\x08\0\0", "3 bytes long, too short"),
        (raw(b"", length=0), "header length 0 in a file of 8 bytes"),
        (raw(W, bytes(8), length=2**63), "header length 9223372036854775808"),
        (raw(W, bytes(8), length=MAX_HEADER + 1), "header length 100000001"),
        (raw(W, bytes(8), length=1000), "header length 1000 in a file of"),
        (raw(W, bytes(8))[:20], "header length .*a download cut short"),
        (raw(b"{not json}"), "header is not valid JSON"),
        (raw(b"\xff\xfe{}"), "header is not valid JSON"),
        (raw(b'{"a":' + b"9" * 5000 + b"}"), "header is not valid JSON"),
        (raw(DEEP), "header is not valid JSON"),
        (raw(b"[]"), "header is not a JSON object"),
        (raw(b'{"w":1,"w":2}'), "a name occurs twice"),
        (raw({"__metadata__": {"a": 1}}), "__metadata__ is not an object of strings"),
        (raw({"__metadata__": []}), "__metadata__ is not an object of strings"),
        (raw({"w": [1]}), "entry of 'w' is not an object"),
        (raw({"w": entry("F8_E4M3", [8], 0, 8)}, bytes(8)), "'w' is stored as 'F8_E4M3'.*full-precision"),
        (raw({"w": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "'w' is stored as None"),
        (raw({"w": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "stored as"),
        (raw({"w": entry("F32", [-2], 0, 8)}, bytes(8)), r"shape \[-2\]"),
        (raw({"w": entry("F32", [2.0], 0, 8)}, bytes(8)), r"shape \[2.0\]"),
        (raw({"w": entry("F32", [True, 2], 0, 8)}, bytes(8)), "shape"),
        (raw({"w": entry("F32", [1] * 70, 0, 4)}, bytes(4)), "shape"),
        (raw({"w": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}, bytes(8)), "shape 2"),
        (raw({"w": {"dtype": "F32", "shape": [2]}}, bytes(8)), "data_offsets None"),
        (raw({"w": entry("F32", [2], -4, 4)}, bytes(8)), r"data_offsets \[-4, 4\]"),
        (raw({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}}, bytes(8)), "data_offsets"),
        (raw({"w": entry("F32", [2], 8, 0)}, bytes(8)), r"'w' lies at \[8, 0\], but F32 \[2\] takes 8 bytes"),
        (raw({"w": entry("F32", [2], 0, 4)}, bytes(4)), "takes 8 bytes"),
        (raw({"w": entry("F32", [2**40, 2**40], 0, 8)}, bytes(8)), "takes .* bytes"),
        (raw(W, bytes(7)), "tensors end at byte .* download cut short"),
        (raw(W, bytes(12)), "tensors end at byte"),
        (raw({**W, "v": entry("F32", [2], 4, 12)}, bytes(12)), "'v' starts at byte .*overlaps"),
        (raw({**W, "v": entry("F32", [2], 0, 8)}, bytes(8)), "overlaps"),
        (raw({**W, "v": entry("F32", [1], 12, 16)}, bytes(16)), "'v' starts at byte .*leaves a hole"),
        (raw({"w": entry("F32", [2], 4, 12)}, bytes(12)), "leaves a hole"),
        (raw({"w": entry("F32", [2], 10**18, 10**18 + 8)}, bytes(8)), "leaves a hole"),
    ],
)
def test_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    tiny.write(tmp_path, {FILE: content})
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(tmp_path, FILE)
    assert str(caught.value).startswith(f"{FILE}: ")


SMALL = save(
    {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float16)}, {"format": "pt"}
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    end=st.one_of(st.just(len(SMALL)), st.integers(0, len(SMALL))),
)
def test_any_damage_is_a_refusal_or_harmless(tmp_path: Path, flips: list[tuple[int, int]], end: int) -> None:
    """Whatever byte changes: a CheckpointError, or tensors that lie in the file (and that the library reads too)."""
    damaged = bytearray(SMALL)
    for place, value in flips:
        damaged[place] = value
    tiny.write(tmp_path, {FILE: bytes(damaged[:end])})
    try:
        found = read_header(tmp_path, FILE)
    except CheckpointError:
        return
    reference = load(bytes(damaged[:end]))
    assert found.keys() == reference.keys()
    for name, tensor in found.items():
        array = tensor.array(tmp_path)
        assert array.tobytes() == reference[name].tobytes() and array.shape == reference[name].shape


def sharded(tmp_path: Path, weight_map: object = None, second: bytes | None = None) -> Path:
    first = save({"a": np.zeros(2, np.float32)})
    other = save({"b": np.ones(3, np.float32)}) if second is None else second
    index = {"a": "m-1.safetensors", "b": "m-2.safetensors"} if weight_map is None else weight_map
    content = {INDEX: json.dumps({"weight_map": index}).encode(), "m-1.safetensors": first}
    return tiny.write(tmp_path, {**content, "m-2.safetensors": other})


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    tensors = read_tensors(sharded(tmp_path))
    assert {name: tensor.file for name, tensor in tensors.items()} == {
        "a": "m-1.safetensors",
        "b": "m-2.safetensors",
    }
    np.testing.assert_array_equal(tensors["b"].array(tmp_path), [1, 1, 1])


@pytest.mark.parametrize(
    "name", ["../m-2.safetensors", "/etc/m.safetensors", "x/m-2.safetensors", "..", "m\\2", ""]
)
def test_a_shard_is_a_file_beside_the_index(tmp_path: Path, name: str) -> None:
    folder = sharded(tmp_path / "inside", {"a": "m-1.safetensors", "b": name})
    (tmp_path / "m-2.safetensors").write_bytes(save({"b": np.ones(3, np.float32)}))
    with pytest.raises(CheckpointError, match="is not the name of a safetensors file beside the index"):
        read_tensors(folder)


@pytest.mark.parametrize(
    ("weight_map", "second", "message"),
    [
        ([], None, "weight_map must be a non-empty object"),
        ({}, None, "weight_map must be a non-empty object"),
        ({"a": 1}, None, "weight_map must be"),
        ({"a": "m-1.safetensors", "b": "m-3.safetensors"}, None, "m-3.safetensors: missing"),
        ({"a": "m-1.safetensors", "c": "m-2.safetensors"}, None, "m-2.safetensors: tensor 'c' is not in it"),
        ({"a": "m-2.safetensors", "b": "m-2.safetensors"}, None, "m-2.safetensors: tensor 'a' is not in it"),
        (None, save({"a": np.zeros(2, np.float32)}), "tensor 'a' is also stored in m-1.safetensors"),
        (None, b"", "m-2.safetensors: 0 bytes long"),
        (None, SMALL[:40], "m-2.safetensors: header length"),
    ],
)
def test_refuses_bad_shards(tmp_path: Path, weight_map: object, second: bytes | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_tensors(sharded(tmp_path, weight_map, second))


def test_one_file_goes_before_an_index(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    (folder / SINGLE).write_bytes(SMALL)
    assert read_tensors(folder).keys() == {"a", "b"}
    assert {tensor.file for tensor in read_tensors(folder).values()} == {SINGLE}


def test_links_into_the_hub_cache_are_followed(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / "0a1b"
    blob.parent.mkdir()
    blob.write_bytes(SMALL)
    snapshot = tmp_path / "snapshots" / "c"
    snapshot.mkdir(parents=True)
    (snapshot / SINGLE).symlink_to(os.path.relpath(blob, snapshot))
    np.testing.assert_array_equal(read_tensors(snapshot)["b"].array(snapshot), [1, 1, 1])
    blob.unlink()
    with pytest.raises(CheckpointError, match=f"{SINGLE}: missing"):
        read_tensors(snapshot)
