"""ONNX Runtime on the CPU: `model.onnx` straight from the bundle, its weights read from the checkpoint's own file."""

import contextlib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bei.errors import EngineError
from bei.manifest import EngineRecord, Manifest
from bei.runtime.cpu import usable_cpus
from bei.runtime.executor import Output, Row
from bei.runtime.executors.onnxruntime_session import SessionExecutor, wrong_layout
from bei.runtime.packing import Array, pad
from bei.runtime.placement import placement

if TYPE_CHECKING:
    import onnxruntime


class OnnxRuntimeExecutor(SessionExecutor):
    """Called from as many threads as there are CPUs: small batches side by side use the caches and the cores better than
    one large batch spread over all cores. Rows are padded to the longest of the call."""

    def __init__(
        self, session: "onnxruntime.InferenceSession", record: EngineRecord, manifest: Manifest, threads: int
    ) -> None:
        super().__init__(session, record, manifest)
        self.concurrency = threads
        self._placement = placement(threads)

    def describe(self) -> dict[str, Any]:
        return {"device": "cpu", "threads": self.concurrency, **super().describe()}

    def _pad(self, rows: list[Row]) -> dict[str, Array]:
        return pad(rows, self._pad_id, np.int64)

    def _call(self, session: "onnxruntime.InferenceSession", feeds: dict[str, Array]) -> Output:
        with self._placement.call() if self._placement else contextlib.nullcontext():
            (out,) = session.run([self._head.output], feeds)
        return np.asarray(out, np.float32)


def available(record: EngineRecord) -> str | None:
    """None when this machine can run the engine, else the reason."""
    if (reason := wrong_layout(record)) is not None:
        return reason
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
    if placed := placement(
        threads
    ):  # the pool's threads are those beside the caller's; cores count from 1 here
        cores = ";".join(str(core + 1) for core in placed.cores[1:])
        options.add_session_config_entry("session.intra_op_thread_affinities", cores)
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
