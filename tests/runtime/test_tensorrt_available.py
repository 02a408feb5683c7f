"""Whether a TensorRT engine may run on a machine: every refusal with its reason, the real library up to where it asks for
the driver."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.runtime.tensorrt_double import bundle_manifest, gpu, needs_rtx, no_gpu, record

from bei.errors import EngineError
from bei.runtime.executors import tensorrt
from bei.runtime.executors.tensorrt import available
from bei.runtime.tensorrt import library
from bei.runtime.tensorrt.library import load_engine


@no_gpu
@needs_rtx
def test_without_a_driver_the_reason_is_the_driver() -> None:
    assert available(record()) == ("no CUDA driver was found (libcuda is missing); install the NVIDIA driver")


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_missing_library_is_the_reason(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library.LIBRARIES[backend].module, None)
    reason = available(record(backend=backend))
    assert reason is not None
    assert reason.startswith(f"{backend} is not installed; pip install ")


@needs_rtx
def test_the_wrong_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "gpus", lambda: (gpu(90, "NVIDIA H100"),))
    assert available(record()) == (
        "the plan was built for compute capability 8.0, 8.9, and NVIDIA H100 has 9.0"
    )


@needs_rtx
def test_the_wrong_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "gpus", lambda: (gpu(89),))
    reason = available(record(tool_versions={"tensorrt-rtx": "1.6.0.1"}))
    assert reason is not None
    assert "built by tensorrt-rtx 1.6.0.1" in reason
    assert "install 1.6.0.1, or build the bundle again" in reason


@needs_rtx
@pytest.mark.parametrize(("built", "reads"), [("1.0.0.1", True), ("99.0.0.1", False), ("one", False)])
def test_a_version_compatible_plan_is_read_by_later_versions(
    built: str, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT's, tried with the version of the library that is here."""
    monkeypatch.setattr(tensorrt, "gpus", lambda: (gpu(89),))
    reason = available(record(tool_versions={"tensorrt-rtx": built}, version_compatible=True))
    assert (reason is None) is reads
    assert reads or f"built by tensorrt-rtx {built}" in str(reason)


@pytest.mark.parametrize("compatible", [True, False])
def test_code_inside_a_plan_is_allowed_where_the_manifest_says_that_there_is_some(
    compatible: bool, tmp_path: Path
) -> None:
    allowed: list[bool] = []

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: object) -> None: ...

        def deserialize_cuda_engine(self, data: object) -> str:
            allowed.append(self.engine_host_code_allowed)
            return "the engine"

    library = SimpleNamespace(ILogger=type("ILogger", (), {"__init__": lambda self: None}), Runtime=Runtime)
    (tmp_path / "plan").write_bytes(b"a plan")
    assert load_engine(library, record(version_compatible=compatible), tmp_path / "plan") == "the engine"
    assert allowed == [compatible]


@needs_rtx
def test_a_driver_older_than_the_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "gpus", lambda: (gpu(89, cuda=(12, 4)),))
    assert available(record()) == (
        "tensorrt-rtx-cu13 is installed, and the NVIDIA driver runs CUDA up to 12.4; "
        "update the driver, or install tensorrt-rtx-cu12"
    )


@needs_rtx
def test_the_right_gpu_and_version_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt_rtx

    monkeypatch.setattr(tensorrt, "gpus", lambda: (gpu(90), gpu(120), gpu(89)))
    assert available(record(tool_versions={"tensorrt-rtx": tensorrt_rtx.__version__})) is None


def test_another_device_than_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tensorrt, "gpus", lambda: (gpu(89), gpu(90, "NVIDIA H100")))
    manifest = bundle_manifest(tmp_path)
    for device, says in ((2, r"there is no GPU 2 \(found 2\)"), (1, "NVIDIA H100 has 9.0")):
        with pytest.raises(EngineError, match=says):
            tensorrt.create(tmp_path, record(), manifest, device=device)


@no_gpu
@needs_rtx
def test_the_real_library_says_why_it_cannot_load(tmp_path: Path) -> None:
    import tensorrt_rtx

    (tmp_path / "plan").write_bytes(b"not a plan" * 100)
    with pytest.raises(
        EngineError, match=r"sm89: tensorrt-rtx cannot load .*: it is no plan of this library, or damaged; \S"
    ):
        load_engine(tensorrt_rtx, record(), tmp_path / "plan")
