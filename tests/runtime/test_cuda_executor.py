"""What the CUDA executor says where it cannot run."""

from dataclasses import dataclass

import pytest

from bei.errors import EngineError
from bei.gpu import Gpu as Found
from bei.manifest import EngineRecord
from bei.runtime.cuda.cublaslt import EPILOGUES
from bei.runtime.cuda.driver import Driver
from bei.runtime.executors import cuda

RECORD = EngineRecord(
    target="cuda-sm90",
    backend="cuda",
    device="cuda",
    layout="packed",
    precision="fp16",
    path="engines/cuda-sm90/plan",
    inputs=("ids",),
    status="built, not executed",
    tool_versions={},
    compute_capabilities=("9.0",),
)


@dataclass
class Library:
    """Stands in for the search of cuBLASLt."""

    path: str | None

    def __call__(self) -> str | None:
        return self.path


def machine(
    monkeypatch: pytest.MonkeyPatch, gpus: object, library: str | None = "libcublasLt.so.13"
) -> str | None:
    monkeypatch.setattr(cuda, "gpus", lambda: gpus)
    monkeypatch.setattr(cuda, "find_library", Library(library))
    return cuda.available(RECORD)


def gpu(sm: int) -> Found:
    return Found(index=0, name="GPU", sm=sm, memory=1 << 34, cuda=(13, 0))


def test_a_machine_that_fits_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine(monkeypatch, (gpu(90),)) is None


def test_reasons_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine(monkeypatch, "no CUDA driver was found") == "no CUDA driver was found"
    assert (
        machine(monkeypatch, (gpu(89),))
        == "it was compiled for compute capability 9.0, and this machine has 8.9"
    )
    missing = machine(monkeypatch, (gpu(90),), library=None)
    assert missing is not None and "cuBLASLt is not installed" in missing


def test_no_driver_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match="cuda-sm90: no CUDA driver was found"):
        Driver("cuda-sm90", libraries=("libthere-is-no-such-driver.so",))


def test_every_epilogue_has_a_form_with_and_without_a_bias() -> None:
    """cublasLt.h: DEFAULT 1, RELU 2, BIAS 4, GELU 32, their sums."""
    assert len(EPILOGUES) == 6
    assert all(
        number == EPILOGUES[name, False] % 36 + 4 - (name == "none")
        for (name, bias), number in EPILOGUES.items()
        if bias
    )
