"""ONNX Runtime on the CPU: `model.onnx` straight from the bundle, its weights read from the checkpoint's own file."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bei.errors import EngineError
from bei.manifest import EngineRecord, Manifest
from bei.runtime.cpu import usable_cpus
from bei.runtime.executor import Output, Row
from bei.runtime.packing import pad

if TYPE_CHECKING:
    import onnxruntime


class OnnxRuntimeExecutor:
    """One session, called from as many threads as there are CPUs: small batches side by side use the caches and the
    cores better than one large batch spread over all cores. Rows are padded to the longest of the call."""

    def __init__(
        self, session: "onnxruntime.InferenceSession", record: EngineRecord, manifest: Manifest, threads: int
    ) -> None:
        self.target = record.target
        self._session: onnxruntime.InferenceSession | None = session
        self._inputs = record.inputs
        self._output = manifest.head.output
        self._pad_id = manifest.tokenizer.pad_id
        self._per_token = manifest.head.task == "token-classify"
        self.concurrency = threads

    def run(self, rows: list[Row]) -> list[Output] | Output:
        """float32 [B, d], or one [n_i, labels] a row for token classification. Raises EngineError."""
        if self._session is None:
            raise EngineError(f"{self.target}: the engine is closed")
        arrays = pad(rows, self._pad_id, np.int64)
        feeds = {name: arrays[name] for name in self._inputs}
        try:
            (out,) = self._session.run([self._output], feeds)
        except Exception as error:  # onnxruntime's exception classes share no base of their own
            raise EngineError(f"{self.target}: onnxruntime failed: {error}") from error
        if self._per_token:
            return [out[i, : len(row.ids)] for i, row in enumerate(rows)]
        return np.asarray(out, np.float32)

    def describe(self) -> dict[str, Any]:
        import onnxruntime

        return {"device": "cpu", "threads": self.concurrency, "onnxruntime": onnxruntime.__version__}

    def close(self) -> None:
        self._session = None


def available(record: EngineRecord) -> str | None:
    """None when this machine can run the engine, else the reason."""
    if record.layout != "padded":
        return f"the {record.layout} layout is not supported on onnxruntime"
    if find_spec("onnxruntime") is None:
        return "onnxruntime is not installed (pip install onnxruntime)"
    return None


def create(
    bundle_path: Path,
    record: EngineRecord,
    manifest: Manifest,
    *,
    threads: int | None = None,
    device: int = 0,
) -> OnnxRuntimeExecutor:
    """Load the graph by path, so that it finds its weights beside it. ``device`` has no meaning on a CPU."""
    import onnxruntime

    count = threads or usable_cpus()
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(bundle_path / record.path), _options(count), providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exception classes share no base of their own
        raise EngineError(f"{record.target}: onnxruntime cannot load {record.path}: {error}") from error
    _check_names(session, record, manifest)
    return OnnxRuntimeExecutor(session, record, manifest, count)


def _options(threads: int) -> "onnxruntime.SessionOptions":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Waiting threads that spin take the cores from the other calls, the tokenizer and the server.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = (
        4  # failures arrive as exceptions; warnings about the graph are not the user's
    )
    return options


def _check_names(session: "onnxruntime.InferenceSession", record: EngineRecord, manifest: Manifest) -> None:
    takes = sorted(value.name for value in session.get_inputs())
    gives = [value.name for value in session.get_outputs()]
    if takes != sorted(record.inputs) or manifest.head.output not in gives:
        raise EngineError(
            f"{record.target}: {record.path} takes {takes} and gives {gives}, but the manifest says "
            f"{sorted(record.inputs)} and {manifest.head.output!r}. Rebuild the bundle with bei-compile."
        )
