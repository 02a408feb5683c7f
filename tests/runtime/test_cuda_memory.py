"""Device buffers, on a real GPU."""

import threading

import numpy as np
import pytest

from bei.errors import EngineError
from bei.gpu import gpus
from bei.runtime.cuda_memory import CudaMemory

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(isinstance(gpus(), str), reason="needs an NVIDIA GPU")]


def test_what_goes_up_comes_down_whatever_its_size() -> None:
    memory = CudaMemory("test", 0)
    rng = np.random.default_rng(0)
    for shape in ((3, 5), (1,), (200, 300), (7, 7), (0,)):
        for dtype in (np.int32, np.float32):
            array = rng.integers(-100, 100, shape).astype(dtype)
            memory.upload("x", array)
            np.testing.assert_array_equal(memory.download("x", shape, dtype), array)
    assert memory.size() == 200 * 300 * 4
    memory.close()


def test_buffers_do_not_share_memory_and_are_aligned() -> None:
    memory = CudaMemory("test", 0)
    addresses = [memory.reserve(name, 100) for name in "abc"]
    assert len(set(addresses)) == 3
    assert all(address % 256 == 0 for address in addresses)
    for value, name in enumerate("abc"):
        memory.upload(name, np.full(25, value, np.int32))
    for value, name in enumerate("abc"):
        assert set(memory.download(name, (25,), np.int32)) == {value}
    memory.close()


def test_uploads_in_a_row_do_not_overwrite_each_others_staging() -> None:
    memory = CudaMemory("test", 0)
    for value in range(20):
        memory.upload("x", np.full(1 << 20, value, np.int32))
    assert set(memory.download("x", (1 << 20,), np.int32)) == {19}
    memory.close()


def test_another_thread_can_use_it() -> None:
    memory = CudaMemory("test", 0)
    seen = []

    def use() -> None:
        memory.activate()
        memory.upload("x", np.arange(10, dtype=np.int32))
        seen.append(memory.download("x", (10,), np.int32).tolist())

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [list(range(10))]
    memory.close()


def test_too_much_is_an_error_with_cudas_own_name() -> None:
    memory = CudaMemory("test", 0)
    with pytest.raises(EngineError, match="test: out of GPU memory"):
        memory.reserve("x", 1 << 45)
    memory.close()


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(EngineError, match="cuDeviceGet failed: CUDA_ERROR_INVALID_DEVICE"):
        CudaMemory("test", 99)


def test_a_graph_repeats_what_was_queued_while_it_was_captured() -> None:
    memory = CudaMemory("test", 0)
    array = np.arange(1000, dtype=np.int32)
    at = memory.upload("x", array)
    graph = memory.capture(lambda: memory._gpu.clear(at, 400))
    for _ in range(2):
        memory.upload("x", array)
        memory.replay(graph)
        got = memory.download("x", (1000,), np.int32)
        np.testing.assert_array_equal(got[:100], 0)
        np.testing.assert_array_equal(got[100:], array[100:])
    memory.forget(graph)
    memory.close()


def test_a_buffer_that_grows_has_moved() -> None:
    memory = CudaMemory("test", 0)
    memory.reserve("x", 100)
    moves = memory.moves
    memory.reserve("x", 50)
    assert memory.moves == moves
    memory.reserve("x", 1 << 20)
    assert memory.moves == moves + 1
    memory.close()
