"""A second opinion: a bundle's engine run by NVIDIA's Polygraphy instead of this project's executor.

Batches, padding and measures stay ours; loading sessions, buffers and execution are Polygraphy's. Where both disagree with
Hugging Face the engine is at fault, where only one does its executor is. A backend module in the sense of
`bei.runtime.executors.registry`.
"""

import os
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bei.errors import EngineError
from bei.gpu import gpus
from bei.manifest import EngineRecord, Manifest
from bei.runtime.executor import Output, Row
from bei.runtime.executors import registry
from bei.runtime.packing import pack, pad
from bei.runtime.tensorrt.library import LIBRARIES, load_engine

INSTALL = 'pip install "bei[polygraphy]"'
USE_RTX = "POLYGRAPHY_USE_TENSORRT_RTX"
"""Read when Polygraphy is imported: a process has one of the two libraries."""


def available(record: EngineRecord) -> str | None:
    """None when Polygraphy can run the engine here, else the reason."""
    if find_spec("polygraphy") is None:
        return f"polygraphy is not installed ({INSTALL})"
    if record.backend not in LIBRARIES and (record.backend, record.device) != ("onnxruntime", "cpu"):
        return f"polygraphy has no runner for {record.backend} engines on {record.device}"
    return registry.available(record)


def create(
    bundle_path: Path,
    record: EngineRecord,
    manifest: Manifest,
    *,
    threads: int | None = None,
    device: int = 0,
) -> "PolygraphyExecutor":
    """Start the engine. ``threads`` and ``device`` are Polygraphy's choice: all CPUs, the first GPU. Raises EngineError."""
    reason = available(record)
    if reason is not None:
        raise EngineError(f"{record.target}: polygraphy cannot run it here: {reason}")
    path = bundle_path / record.path
    made = _tensorrt(record, path) if record.backend in LIBRARIES else _onnxruntime(path)
    try:
        made.activate()
    except Exception as error:  # polygraphy passes on what its back ends raise
        raise EngineError(f"{record.target}: polygraphy cannot start it: {error}") from error
    return PolygraphyExecutor(made, record, manifest)


def _onnxruntime(path: Path) -> Any:
    onnxrt = import_module("polygraphy.backend.onnxrt")
    return onnxrt.OnnxrtRunner(onnxrt.SessionFromOnnx(os.fspath(path), providers=["cpu"]))


def _tensorrt(record: EngineRecord, path: Path) -> Any:
    """The plan is read by the library itself; everything after that is Polygraphy's."""
    rtx = record.backend == "tensorrt-rtx"
    os.environ[USE_RTX] = "1" if rtx else "0"
    if rtx != import_module("polygraphy.config").USE_TENSORRT_RTX:
        raise EngineError(
            f"{record.target}: polygraphy drives one TensorRT library a process, and it is the other one already. "
            "Check the engines one by one, with --target."
        )
    engine = load_engine(import_module(LIBRARIES[record.backend].module), record, path)
    return import_module("polygraphy.backend.trt").TrtRunner(engine)


class PolygraphyExecutor:
    """An active ``runner`` of Polygraphy, of which one call runs at a time."""

    concurrency = 1

    def __init__(self, runner: Any, record: EngineRecord, manifest: Manifest) -> None:
        self.target = record.target
        self._runner, self._record = runner, record
        self._output, self._pad_id = manifest.head.output, manifest.tokenizer.pad_id
        self._per_token = manifest.head.task == "token-classify"

    def run(self, rows: list[Row]) -> Sequence[Output] | Output:
        """float32 [B, d], or one [n_i, labels] a row for token classification. Raises EngineError."""
        feeds = self._feeds(rows)
        if self._record.backend in LIBRARIES:
            self._runner.set_profile(self._profile(rows))
        try:
            out = np.array(self._runner.infer(feeds)[self._output], np.float32)  # its buffer is used again
        except Exception as error:  # polygraphy passes on what its back ends raise
            raise EngineError(f"{self.target}: polygraphy failed: {error}") from error
        return [out[i, : row.ids.size] for i, row in enumerate(rows)] if self._per_token else out

    def describe(self) -> dict[str, Any]:
        """Device, and the versions of what ran."""
        record, found = self._record, gpus()
        module = LIBRARIES[record.backend].module if record.backend in LIBRARIES else record.backend
        return {
            "device": record.device if record.device == "cpu" or isinstance(found, str) else found[0].name,
            record.backend: import_module(module).__version__,
            "polygraphy": import_module("polygraphy").__version__,
        }

    def close(self) -> None:
        self._runner.deactivate()

    def _feeds(self, rows: list[Row]) -> dict[str, Any]:
        kind = np.int32 if self._record.backend in LIBRARIES else np.int64
        arrays = pack(rows) if self._record.layout == "packed" else pad(rows, self._pad_id, kind)
        return {name: arrays[name] for name in self._record.inputs}

    def _profile(self, rows: list[Row]) -> int:
        """The first profile that takes the batch."""
        longest = max(row.ids.size for row in rows)
        for index, profile in enumerate(self._record.profiles):
            if len(rows) <= profile.max_batch and longest <= profile.max_length:
                return index
        raise EngineError(
            f"{self.target}: {len(rows)} rows of {longest} tokens are larger than the plan was built for."
        )
