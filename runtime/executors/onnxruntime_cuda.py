"""ONNX Runtime on an NVIDIA GPU: an FP16 graph whose inputs and output stay on the device between copies (IO binding)."""

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bei.errors import EngineError
from bei.gpu import gpus
from bei.manifest import EngineRecord, Manifest
from bei.runtime.cuda.failure import failure
from bei.runtime.executor import Output, Row
from bei.runtime.executors.onnxruntime_session import SessionExecutor, wrong_layout
from bei.runtime.packing import Array, pad

if TYPE_CHECKING:
    import onnxruntime

PROVIDER = "CUDAExecutionProvider"
OLDEST = (1, 31)
"""The first release for CUDA 13 whose skip-layer-norm sums in fp32 when asked to."""
DRIVER = (13, 0)
CUDA_FAILURE = re.compile(r"CUDA failure (\d+)")
"""How ONNX Runtime tells the code of a CUDA call that failed."""
MULTIPLE = 8
"""Attention with a bias or window has a fused form only for lengths that are a multiple of this."""


class OnnxRuntimeCudaExecutor(SessionExecutor):
    """One session on one device; ``place`` is where its tensors lie, as ONNX Runtime names it."""

    def __init__(
        self,
        session: "onnxruntime.InferenceSession",
        record: EngineRecord,
        manifest: Manifest,
        place: str,
        device: int,
    ) -> None:
        super().__init__(session, record, manifest)
        self._longest = manifest.limits.max_length
        self._place, self._device = place, device

    def describe(self) -> dict[str, Any]:
        found = gpus()
        name = "cuda" if isinstance(found, str) or self._device >= len(found) else found[self._device].name
        return {"device": name, **super().describe()}

    def _pad(self, rows: list[Row]) -> dict[str, Array]:
        return pad(rows, self._pad_id, np.int32, multiple=MULTIPLE, longest=self._longest)

    def _call(self, session: "onnxruntime.InferenceSession", feeds: dict[str, Array]) -> Output:
        import onnxruntime

        binding = session.io_binding()
        for name, array in feeds.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, self._place, self._device)
            binding.bind_ortvalue_input(name, value)
        binding.bind_output(self._head.output, self._place, self._device)
        session.run_with_iobinding(binding)
        return np.asarray(binding.get_outputs()[0].numpy(), np.float32)

    def _failure(self, error: Exception) -> EngineError:
        code = CUDA_FAILURE.search(str(error))
        return failure(int(code[1]) if code else 0, f"{self.target}: {_reason(error)}")


def _reason(error: Exception) -> str:
    text = str(error)
    if "llocate memory" in text or "out of memory" in text:
        return f"out of GPU memory ({text[:200]}). Send smaller batches, or free memory on the GPU."
    return f"onnxruntime failed: {text}"


def available(record: EngineRecord) -> str | None:
    """None when this machine can run the engine, else the reason."""
    if (reason := wrong_layout(record)) is not None:
        return reason
    found = gpus()
    if isinstance(found, str):
        return found
    if found[0].cuda < DRIVER:
        return f"its driver runs CUDA {_dotted(found[0].cuda)}, and onnxruntime-gpu needs {_dotted(DRIVER)}"
    if find_spec("onnxruntime") is None:
        return 'onnxruntime is not installed (pip install "onnxruntime-gpu[cuda]>=1.31")'
    return _library_problem()


def _library_problem() -> str | None:
    import onnxruntime

    version = onnxruntime.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"onnxruntime {version} is too old, need {_dotted(OLDEST)}"
    if PROVIDER not in onnxruntime.get_available_providers():
        return (
            f"onnxruntime {version} was built without CUDA "
            '(pip uninstall onnxruntime; pip install "onnxruntime-gpu[cuda]>=1.31")'
        )
    return None


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def create(
    bundle_path: Path,
    record: EngineRecord,
    manifest: Manifest,
    *,
    threads: int | None = None,
    device: int = 0,
) -> OnnxRuntimeCudaExecutor:
    """Load the graph onto GPU ``device``. ``threads`` has no meaning here. Raises EngineError, also where ONNX Runtime
    would quietly run on the CPU because a CUDA library is missing."""
    import onnxruntime

    onnxruntime.preload_dlls()  # CUDA's libraries from their wheels, where they are installed
    session = load(bundle_path, record, providers(device))
    if PROVIDER not in session.get_providers():
        raise EngineError(
            f"{record.target}: onnxruntime could not start on the GPU (a CUDA 13 library is missing). "
            'Install them: pip install "onnxruntime-gpu[cuda]>=1.31".'
        )
    return OnnxRuntimeCudaExecutor(session, record, manifest, "cuda", device)


def providers(device: int) -> list[Any]:
    """GPU ``device``, products and norms summed in fp32; what it cannot run goes to the CPU."""
    options = {
        "device_id": str(device),
        "use_tf32": "0",
        "enable_skip_layer_norm_strict_mode": "1",
    }
    return [(PROVIDER, options), "CPUExecutionProvider"]


def load(bundle_path: Path, record: EngineRecord, providers: list[Any]) -> "onnxruntime.InferenceSession":
    """The graph as bytes, its weights from the bundle's own checkpoint file. Raises EngineError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # failures arrive as exceptions
    folder = os.fspath(bundle_path.absolute())
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    try:
        return onnxruntime.InferenceSession(
            (bundle_path / record.path).read_bytes(), options, providers=providers
        )
    except Exception as error:  # onnxruntime's exception classes share no base of their own
        raise EngineError(f"{record.target}: {record.path} cannot be loaded: {_reason(error)}") from error
