"""What the driver says about GPUs; without a driver, why there are none."""

from pathlib import Path

import pytest

from bei.gpu import driver_version, gpus


def test_without_a_driver_there_is_a_reason() -> None:
    reason = gpus(libraries=("libthat-does-not-exist.so.1",))
    assert reason == "no CUDA driver was found (libcuda is missing); install the NVIDIA driver"


def test_a_library_that_is_no_driver_is_a_reason_not_a_crash() -> None:
    reason = gpus(libraries=("libc.so.6",))
    assert isinstance(reason, str)
    assert "reports no usable GPU" in reason


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n",
            "535.183.01",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n", "580.65.06"),
        ("GCC version: 12.2.0\n", None),
    ],
)
def test_the_drivers_own_version(tmp_path: Path, text: str, version: str | None) -> None:
    (tmp_path / "version").write_text(text)
    assert driver_version(tmp_path / "version") == version
    assert driver_version(tmp_path / "nothing") is None


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
