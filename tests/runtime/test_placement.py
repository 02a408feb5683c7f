"""Where calls begin, and that threads are let go again."""

import os
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.tiny import CLS, SEP, expected, write_bundle

from bei.runtime import placement as module
from bei.runtime.bundle import open_bundle
from bei.runtime.executor import Row
from bei.runtime.executors import onnxruntime, registry
from bei.runtime.placement import Placement, placement

Moves = list[set[int]]


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> Moves:
    """Where threads were sent, on a machine whose cores 2, 5 and 7 are ours."""
    found: Moves = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {7, 2, 5})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: found.append(set(cores)))
    module._of_process.cache_clear()
    return found


def begun(moves: Moves) -> list[int]:
    """The cores where calls began."""
    assert moves[1::2] == [{2, 5, 7}] * (len(moves) // 2)
    return [core for (core,) in moves[::2]]


def test_calls_begin_each_on_a_core_of_its_own(moves: Moves) -> None:
    places = Placement((2, 5, 7))
    with places.call():
        with places.call():
            pass
        with places.call():
            pass
    with places.call():
        pass
    assert begun(moves) == [2, 5, 5, 2]


def test_more_calls_than_cores_go_where_the_kernel_likes(moves: Moves) -> None:
    places = Placement((2, 5, 7))
    with ExitStack() as running:
        for _ in range(5):
            running.enter_context(places.call())
    assert begun(moves) == [2, 5, 7]


def test_a_call_that_fails_gives_its_core_back(moves: Moves) -> None:
    places = Placement((2, 5, 7))
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"), places.call():
            raise ValueError("broken")
    assert begun(moves) == [2, 2]


def test_a_core_that_was_taken_away_is_no_failure(moves: Moves, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5, 7})
    with Placement((2, 5, 7)).call():
        assert moves == []

    def refused(pid: int, cores: set[int]) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sched_setaffinity", refused)
    with Placement((5, 7)).call():
        pass


def test_only_engines_that_have_all_cores_are_placed(moves: Moves) -> None:
    assert placement(1) is None and placement(2) is None and placement(4) is None
    ours = placement(3)
    assert ours is not None and ours is placement(3)
    assert ours.cores == (2, 5, 7)


def test_a_system_without_affinities_places_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity")
    assert placement(2) is None


def test_the_pools_threads_keep_the_other_cores(moves: Moves) -> None:
    entry = "session.intra_op_thread_affinities"
    assert onnxruntime._options(3).get_session_config_entry(entry) == "6;8"  # counted from 1
    with pytest.raises(RuntimeError):
        onnxruntime._options(2).get_session_config_entry(entry)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_placed_engine_computes_the_same_and_lets_its_threads_go(tmp_path: Path) -> None:
    module._of_process.cache_clear()
    bundle = open_bundle(write_bundle(tmp_path / "b"))
    cores = os.sched_getaffinity(0)
    others = set(thread_ids())
    executor = registry.create(bundle.path, bundle.manifest.engines[0], bundle.manifest, threads=len(cores))
    pool = set(thread_ids()) - others
    ids = np.array([CLS, 5, 6, SEP], np.int32)
    let_go: list[bool] = []

    def call() -> None:
        (output,) = np.asarray(executor.run([Row(ids=ids, types=np.zeros(4, np.int32))]))
        np.testing.assert_allclose(output, expected(ids.tolist()), atol=1e-6)
        let_go.append(os.sched_getaffinity(0) == cores)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert let_go == [True] * 8
    assert {frozenset(os.sched_getaffinity(thread)) for thread in pool} == {
        frozenset({core}) for core in sorted(cores)[1:]
    }
    executor.close()


def thread_ids() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/task")]
