"""Pages of mapped files are given back where there are many, and nothing is lost by it."""

import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bei.compiler import mapped
from bei.compiler.mapped import mapping, not_resident, regions, release, release_regions
from tests.compiler.resident import NEEDS_PROC, resident_kib


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    np.arange(1 << 20, dtype=np.int32).tofile(path)
    return path


def read(file: Path) -> "np.memmap[tuple[int], np.dtype[np.int32]]":
    """The file mapped, every page of it looked at."""
    array = np.memmap(file, np.int32, "r")
    assert array.sum(dtype=np.int64) > 0
    return array


@NEEDS_PROC
def test_more_than_may_stay_is_given_back_while_it_is_used(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "_KEPT", -(1 << 40))  # however little it is
    array, calls = np.memmap(file, np.int32, "r"), 0
    own, threads = regions([file]), threading.active_count()

    def give_back() -> None:
        nonlocal calls
        calls += 1
        release_regions([file], own)

    with not_resident(give_back):
        limit = time.monotonic() + 60
        while calls < 3:
            assert time.monotonic() < limit
            assert array.sum(dtype=np.int64) == (1 << 19) * ((1 << 20) - 1)
    assert threading.active_count() == threads


def test_little_stays_till_the_end(file: Path) -> None:
    found, calls = mapping(read(file)), 0
    assert found is not None

    def give_back() -> None:
        nonlocal calls
        calls += 1
        release([found])

    with not_resident(give_back):
        time.sleep(3 * mapped._SECONDS)
        assert calls == 0
    assert calls == 1


@NEEDS_PROC
def test_regions_are_found_by_file_and_given_back(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    assert regions([file]) == frozenset()
    array = read(file)
    (region,) = regions([link])
    assert region[0] == array.ctypes.data
    assert region[1] >= array.nbytes
    assert resident_kib(file) > 0
    release_regions([file.with_name("other")], frozenset([region]))
    assert resident_kib(file) > 0
    release_regions([file], frozenset([region]))
    assert resident_kib(file) == 0
    assert np.array_equal(array, np.arange(1 << 20, dtype=np.int32))
    assert regions([file.with_name("other")]) == frozenset()


@NEEDS_PROC
def test_all_is_given_back_at_the_end_also_after_a_failure(file: Path) -> None:
    array = read(file)
    with pytest.raises(ZeroDivisionError), not_resident(partial(release_regions, [file], regions([file]))):
        assert resident_kib(file) > 0
        raise ZeroDivisionError
    assert resident_kib(file) == 0
    assert array[-1] == (1 << 20) - 1


@NEEDS_PROC
def test_what_was_written_into_a_mapping_is_kept(file: Path) -> None:
    array = np.memmap(file, np.int32, "c")  # private: changes never reach the file
    own = regions([file])
    assert len(own) == 1
    array[5] = -1
    assert regions([file]) == frozenset()
    release_regions([file], own)
    assert array[5] == -1
