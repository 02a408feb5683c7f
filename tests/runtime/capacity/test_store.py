"""Curves on disk, and which of them are a bundle's."""

from pathlib import Path

import msgspec
import pytest
from tests.runtime.capacity.models import FREE, constant, engine
from tests.runtime.tiny import write_bundle

from bei.errors import InputError
from bei.manifest import Manifest
from bei.runtime.bundle import read_bundle
from bei.runtime.capacity.curve import shape_of
from bei.runtime.capacity.store import (
    Curves,
    beside,
    engines_for,
    host_for,
    known_curves,
    read_curves,
    write_curves,
)

CPU = engine(constant(0.01), kind="cpu", device="a CPU")
GPU = engine(constant(0.001), device="a GPU", host="a CPU")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    curves = Curves().updated(CPU, FREE)
    write_curves(tmp_path / "c.json", curves)
    assert read_curves(tmp_path / "c.json") == curves
    assert [file.name for file in tmp_path.iterdir()] == ["c.json"]


def test_a_device_measured_again_takes_the_place_of_the_first() -> None:
    slower = msgspec.structs.replace(CPU, source="again")
    both = Curves().updated(CPU, FREE).updated(GPU, FREE).updated(slower, FREE)
    assert [one.source for one in both.engines] == ["test", "again"]
    assert both.hosts == (FREE,)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"not json", "holds no curves"),
        (b"[]", "schema version None"),
        (b'{"schema_version": 99}', "schema version 99, need 2"),
        (b'{"schema_version": 2, "engines": [{}]}', "holds no curves"),
    ],
)
def test_other_files_are_refused(data: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(data)
    with pytest.raises(InputError, match=why):
        read_curves(tmp_path / "c.json")


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_curves(tmp_path / "nothing.json")
    with pytest.raises(InputError, match="Name another file with --curves"):
        write_curves(tmp_path / "no folder" / "c.json", Curves())


def test_the_file_lies_beside_the_bundle() -> None:
    assert beside(Path("/a/minilm.bundle")) == Path("/a/minilm.curves.json")
    assert beside(Path("/a/minilm")) == Path("/a/minilm.curves.json")


def manifest(tmp_path: Path, dim: int) -> Manifest:
    layers = [{"window": None, "rope": None, "attn_norm": True, "moe": None}] * 6
    encoder = {"dim": dim, "heads": 12, "kv_heads": 12, "head_dim": 32, "ffn": 1536, "act": "gelu"}
    return read_bundle(
        write_bundle(tmp_path / str(dim), encoder=encoder | {"gated": False, "bias": None, "layers": layers})
    ).manifest


def test_the_curves_that_come_with_bei_are_those_of_two_sizes_of_bert(tmp_path: Path) -> None:
    known = known_curves()
    assert {(one.model, one.card) for one in known.engines} == {("bert-base", "H200"), ("minilm-l6", "H200")}
    assert all("benchmarks/results/h200" in one.source for one in known.engines)
    (found,) = engines_for(manifest(tmp_path, 384), [known])
    assert found.model == "minilm-l6"
    assert engines_for(manifest(tmp_path, 400), [known]) == []


def test_the_users_own_curve_comes_before_the_known_one(tmp_path: Path) -> None:
    mine = manifest(tmp_path, 384)
    (known,) = engines_for(mine, [known_curves()])
    own = msgspec.structs.replace(known, source="mine", shape=shape_of(mine.encoder))
    assert [one.source for one in engines_for(mine, [Curves(engines=(own,)), known_curves()])] == ["mine"]


def test_a_cpu_engine_needs_the_host_that_it_was_measured_on() -> None:
    here = msgspec.structs.replace(FREE, device="a CPU")
    assert host_for(CPU, [Curves(hosts=(FREE, here))]) == FREE
    assert host_for(CPU, [Curves(hosts=(here,))]) is None
    assert host_for(GPU, [Curves(hosts=(FREE, here)), Curves(hosts=(FREE,))]) == here
    assert host_for(msgspec.structs.replace(GPU, host="?"), [Curves(hosts=(here,))]) == here
    assert host_for(GPU, [Curves()]) is None
