"""CUDA graphs, where the library leaves them to us."""

from pathlib import Path

import numpy as np
import pytest
from tests.runtime.tensorrt_double import LibraryCache, answer, executor, rows

from bei.runtime.tensorrt import lanes
from bei.runtime.tensorrt.cache import RuntimeCache


def test_a_shape_that_keeps_coming_is_replayed_from_a_context_of_its_own(tmp_path: Path) -> None:
    run, engine, memory = executor(tmp_path)
    for turn in range(lanes.GRAPH_AFTER + 2):
        batch = rows(3 + turn % 2, 8)  # [2, 8], its content changing
        np.testing.assert_array_equal(run.run(batch), answer(batch))
        other = rows(4)
        np.testing.assert_array_equal(run.run(other), answer(other))
    assert memory.replayed == 4
    assert len(engine._contexts) == 2 + 2
    assert run.describe()["cuda_graphs"] == "2"


def test_graphs_are_made_again_when_a_buffer_has_moved(tmp_path: Path) -> None:
    run, _, memory = executor(tmp_path)
    for _ in range(lanes.GRAPH_AFTER + 1):
        run.run(rows(3, 8))
    assert (memory.replayed, run.describe()["cuda_graphs"]) == (1, "1")
    run.run(rows(30, 30))  # needs larger buffers
    batch = rows(5, 8)
    np.testing.assert_array_equal(run.run(batch), answer(batch))
    assert memory.replayed == 1
    np.testing.assert_array_equal(run.run(batch), answer(batch))
    assert memory.replayed == 2


def test_only_so_many_graphs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "GRAPHS", 2)
    monkeypatch.setattr(lanes, "GRAPH_AFTER", 1)
    run, _, memory = executor(tmp_path)
    run.run(rows(8, 8, 8, 8))  # buffers as large as they get here
    for length in (1, 2, 3, 3, 1):
        batch = rows(length)
        np.testing.assert_array_equal(run.run(batch), answer(batch))
    assert (memory.replayed, run.describe()["cuda_graphs"]) == (1, "2")


def test_large_batches_get_no_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "GRAPH_TOKENS", 15)
    run, _, _ = executor(tmp_path)
    for _ in range(lanes.GRAPH_AFTER + 1):
        run.run(rows(8, 8))
    assert run.describe()["cuda_graphs"] == "0"


def test_what_cannot_be_captured_runs_without_a_graph(tmp_path: Path) -> None:
    run, _, memory = executor(tmp_path)
    memory.refuses = True
    for _ in range(lanes.GRAPH_AFTER + 1):
        batch = rows(3, 8)
        np.testing.assert_array_equal(run.run(batch), answer(batch))
    assert run.describe()["cuda_graphs"] == "off: cuStreamEndCapture failed"


def test_a_library_that_captures_by_itself_is_left_to_it(tmp_path: Path) -> None:
    content = LibraryCache()
    run, engine, _ = executor(tmp_path, cache=RuntimeCache(content, [tmp_path / "c" / "x.bin"]))
    for _ in range(lanes.GRAPH_AFTER + 1):
        run.run(rows(3, 8))
    assert (len(engine._contexts), run.describe()["cuda_graphs"]) == (2, "library")
    assert run.describe()["kernel_cache"] == len(b"+")
    run.close()
    assert (tmp_path / "c" / "x.bin").is_file()
