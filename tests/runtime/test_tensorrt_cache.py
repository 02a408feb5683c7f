"""The cache of compiled kernels, from one start to the next."""

from pathlib import Path

import pytest
from tests.runtime.tensorrt_double import LibraryCache, gpu, record

from bei.runtime.tensorrt import cache as cache_module
from bei.runtime.tensorrt.cache import RuntimeCache, cache_files


def test_a_cache_is_kept_from_start_to_start(tmp_path: Path) -> None:
    file = tmp_path / "bundle.cache" / "x.bin"
    for kept in (b"+", b"++"):
        RuntimeCache(LibraryCache(), [file]).save()
        assert file.read_bytes() == kept
    assert [path.name for path in file.parent.iterdir()] == ["x.bin"]


def test_a_cache_that_the_library_rejects_or_that_grew_too_large_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.bin").write_bytes(b"other GPU")
    RuntimeCache(LibraryCache(), [tmp_path / "x.bin"]).save()
    assert (tmp_path / "x.bin").read_bytes() == b"+"
    monkeypatch.setattr(cache_module, "MAX_BYTES", 3)
    (tmp_path / "x.bin").write_bytes(b"++++")
    RuntimeCache(LibraryCache(), [tmp_path / "x.bin"]).save()
    assert (tmp_path / "x.bin").read_bytes() == b"+"


def test_a_bundle_that_cannot_be_written_beside_keeps_its_cache_with_the_user(tmp_path: Path) -> None:
    (tmp_path / "bundle.cache").write_text("a file where the folder should be")
    places = [tmp_path / "bundle.cache" / "x.bin", tmp_path / "home" / "x.bin"]
    for kept in (b"+", b"++"):
        RuntimeCache(LibraryCache(), places).save()
        assert places[1].read_bytes() == kept


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "bundle.cache").write_text("a file where the folder should be")
    cache = RuntimeCache(LibraryCache(), [tmp_path / "bundle.cache" / "x.bin"])
    cache.save()
    assert cache.size == 0


def test_a_cache_is_written_after_the_first_call_too(tmp_path: Path) -> None:
    cache = RuntimeCache(LibraryCache(), [tmp_path / "x.bin"])
    cache.count()
    assert (tmp_path / "x.bin").exists()


def test_a_cache_belongs_to_an_engine_a_gpu_a_version_and_a_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    monkeypatch.setattr(cache_module, "driver_version", lambda: "580.65.06")
    name = "tensorrt-rtx-sm80-sm89-nvidia-l4-1-7-1-580-65-06.bin"
    assert cache_files(record(), tmp_path / "m.bundle", gpu(89), "1.7.1") == (
        tmp_path / "m.bundle.cache" / name,
        Path("/cache/bei/m.bundle.cache") / name,
    )
    monkeypatch.setattr(cache_module, "driver_version", lambda: None)
    assert cache_files(record(), tmp_path, gpu(89), "1.7.1")[0].name.endswith("-1-7-1-cuda-13-0.bin")
