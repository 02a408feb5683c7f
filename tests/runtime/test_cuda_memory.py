"""Device buffers, on a real GPU."""

import threading

import numpy as np
import pytest

from bei.errors import EngineError
from bei.gpu import gpus
from bei.runtime.cuda_memory import CudaMemory

pytest.importorskip("cuda.bindings")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(isinstance(gpus(), str), reason="needs an NVIDIA GPU")]


def test_what_goes_up_comes_down_whatever_its_size() -> None:
    memory = CudaMemory(0)
    rng = np.random.default_rng(0)
    for shape in ((3, 5), (1,), (200, 300), (7, 7), (0,)):
        for dtype in (np.int32, np.float32):
            array = rng.integers(-100, 100, shape).astype(dtype)
            memory.upload("x", array)
            np.testing.assert_array_equal(memory.download("x", shape, dtype), array)
    assert memory.size() == 200 * 300 * 4
    memory.close()


def test_buffers_do_not_share_memory_and_are_aligned() -> None:
    memory = CudaMemory(0)
    addresses = [memory.reserve(name, 100) for name in "abc"]
    assert len(set(addresses)) == 3
    assert all(address % 256 == 0 for address in addresses)
    for value, name in enumerate("abc"):
        memory.upload(name, np.full(25, value, np.int32))
    for value, name in enumerate("abc"):
        assert set(memory.download(name, (25,), np.int32)) == {value}
    memory.close()


def test_uploads_in_a_row_do_not_overwrite_each_others_staging() -> None:
    memory = CudaMemory(0)
    for value in range(20):
        memory.upload("x", np.full(1 << 20, value, np.int32))
    assert set(memory.download("x", (1 << 20,), np.int32)) == {19}
    memory.close()


def test_another_thread_can_use_it() -> None:
    memory = CudaMemory(0)
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
    memory = CudaMemory(0)
    with pytest.raises(EngineError, match="cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY"):
        memory.reserve("x", 1 << 45)
    memory.close()


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(EngineError, match="cuDeviceGet failed: CUDA_ERROR_INVALID_DEVICE"):
        CudaMemory(99)
