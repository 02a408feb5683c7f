"""What the driver says about GPUs; without a driver, why there are none."""

import pytest

from bei.gpu import gpus


def test_without_a_driver_there_is_a_reason() -> None:
    reason = gpus(libraries=("libthat-does-not-exist.so.1",))
    assert reason == "no CUDA driver was found (libcuda is missing); install the NVIDIA driver"


def test_a_library_that_is_no_driver_is_a_reason_not_a_crash() -> None:
    reason = gpus(libraries=("libc.so.6",))
    assert isinstance(reason, str)
    assert "reports no usable GPU" in reason


@pytest.mark.gpu
@pytest.mark.skipif(isinstance(gpus(), str), reason="needs an NVIDIA GPU")
def test_a_gpu_has_a_name_a_compute_capability_and_memory() -> None:
    found = gpus()
    assert not isinstance(found, str)
    for index, gpu in enumerate(found):
        assert gpu.index == index
        assert gpu.name.startswith("NVIDIA")
        assert 50 <= gpu.sm < 200
        assert gpu.memory > 1 << 30
        assert gpu.cuda >= (12, 0)
