"""What ONNX Runtime's executors share: one session, rows padded to one length, failures as errors of ours."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, TypeAlias

from bei.errors import EngineError
from bei.manifest import EngineRecord, Manifest
from bei.runtime.executor import Output, Row
from bei.runtime.packing import Array, unpadded

if TYPE_CHECKING:
    import onnxruntime

Session: TypeAlias = "onnxruntime.InferenceSession"


class SessionExecutor(ABC):
    """One session. How a batch gets in and out of it is its device's business."""

    concurrency = 1

    def __init__(self, session: Session, record: EngineRecord, manifest: Manifest) -> None:
        self.target = record.target
        self._inputs = record.inputs
        self._head = manifest.head
        self._pad_id = manifest.tokenizer.pad_id
        self._session: Session | None = session

    def run(self, rows: list[Row]) -> list[Output] | Output:
        """float32 [B, d], or one [n_i, d] a row for per-token results. Raises EngineError."""
        if self._session is None:
            raise EngineError(f"{self.target}: the engine is closed")
        arrays = self._pad(rows)
        try:
            out = self._call(self._session, {name: arrays[name] for name in self._inputs})
        except Exception as error:  # onnxruntime's exception classes share no base of their own
            raise self._failure(error) from error
        return unpadded(out, rows) if self._head.per_token else out

    def describe(self) -> dict[str, Any]:
        import onnxruntime

        return {"onnxruntime": onnxruntime.__version__}

    def close(self) -> None:
        self._session = None

    @abstractmethod
    def _pad(self, rows: list[Row]) -> dict[str, Array]:
        """All inputs that a graph can have, [B, L]."""

    @abstractmethod
    def _call(self, session: Session, feeds: dict[str, Array]) -> Output:
        """The graph's output, as it is."""

    def _failure(self, error: Exception) -> EngineError:
        return EngineError(f"{self.target}: onnxruntime failed: {error}")


def wrong_layout(record: EngineRecord) -> str | None:
    """Why ONNX Runtime cannot run an engine's layout, None when it can."""
    return (
        None if record.layout == "padded" else f"the {record.layout} layout is not supported on onnxruntime"
    )
