"""What a job writes for a row, by the model's task: Arrow columns beside the id. N rows, D dimensions, C labels.

embed            vector: fixed-size list of D (float32, float16, int8; binary: int8 of D/8)
rerank           score: float32, 0 … 1
classify         label and score of the likeliest; scores: fixed-size list of C float32
token-classify   entities: list of {label, score, start, end, text}; start and end count characters
"""

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bei.errors import InputError
from bei.manifest import HeadSpec, Manifest
from bei.runtime.corpus.job import Dtype
from bei.runtime.executor import Output
from bei.runtime.model import Model
from bei.runtime.outputs import check_dimensions
from bei.runtime.prompts import resolve_prompt
from bei.runtime.quantize import Ranges, float16, int8_by_column, signed_bits
from bei.runtime.tokenizer import Pair

N = TypeVar("N", bound=np.generic)
Answers: TypeAlias = "Sequence[Any] | Output"
"""One an input; an array's rows count as such."""


class Columns(Protocol):
    """One task's columns."""

    def schema(self) -> list[pa.Field]:
        """Names and types, in order."""

    def run(self, model: Model, inputs: "Sequence[str | Pair]") -> Answers:
        """The model's answer, one an input. Raises InputError, EngineError."""

    def arrays(self, answers: Sequence[Any]) -> list[pa.Array]:
        """The columns of these answers. Raises InputError where a column cannot hold one."""


class Vectors:
    def __init__(
        self,
        manifest: Manifest,
        *,
        prompt_name: str | None,
        dimensions: int | None,
        dtype: Dtype,
        ranges: Ranges | None,
    ) -> None:
        check_dimensions(manifest.head, dimensions)
        resolve_prompt(manifest, prompt_name=prompt_name)
        self._prompt_name, self._dimensions, self._dtype, self._ranges = (
            prompt_name,
            dimensions,
            dtype,
            ranges,
        )
        width = dimensions or manifest.head.dimensions
        self._width = -(-width // 8) if dtype == "binary" else width

    def schema(self) -> list[pa.Field]:
        item = pa.field("item", pa.from_numpy_dtype(_stored(self._dtype)), nullable=False)
        return [pa.field("vector", pa.list_(item, self._width), nullable=False)]

    def run(self, model: Model, inputs: "Sequence[str | Pair]") -> Answers:
        return model.encode(inputs, prompt_name=self._prompt_name, dimensions=self._dimensions)

    def arrays(self, answers: Sequence[Any]) -> list[pa.Array]:
        if not answers:
            return [pa.array([], self.schema()[0].type)]
        return [_lists(self._converted(np.stack(answers)), self.schema()[0].type)]

    def _converted(self, x_ND: Output) -> npt.NDArray[Any]:
        if self._dtype == "float16":
            return float16(x_ND, "--dtype")
        if self._dtype == "int8":
            assert self._ranges is not None
            return int8_by_column(x_ND, self._ranges)
        return signed_bits(x_ND) if self._dtype == "binary" else x_ND


class Scores:
    """A reranker's."""

    def schema(self) -> list[pa.Field]:
        return [pa.field("score", pa.float32(), nullable=False)]

    def run(self, model: Model, inputs: "Sequence[str | Pair]") -> Answers:
        return model.predict(inputs)[:, 0]

    def arrays(self, answers: Sequence[Any]) -> list[pa.Array]:
        return [pa.array(np.array(answers, np.float32))]


class Labels:
    def __init__(self, head: HeadSpec) -> None:
        self._labels = head.labels

    def schema(self) -> list[pa.Field]:
        item = pa.field("item", pa.float32(), nullable=False)
        return [
            pa.field("label", pa.string(), nullable=False),
            pa.field("score", pa.float32(), nullable=False),
            pa.field("scores", pa.list_(item, len(self._labels)), nullable=False),
        ]

    def run(self, model: Model, inputs: "Sequence[str | Pair]") -> Answers:
        return model.predict(inputs)

    def arrays(self, answers: Sequence[Any]) -> list[pa.Array]:
        scores_NC = np.array(answers, np.float32).reshape(-1, len(self._labels))
        best_N = scores_NC.argmax(axis=1)
        return [
            pa.array([self._labels[best] for best in best_N], pa.string()),
            pa.array(scores_NC[np.arange(len(best_N)), best_N]),
            _lists(scores_NC, self.schema()[2].type),
        ]


class Entities:
    def schema(self) -> list[pa.Field]:
        entity = pa.struct(
            [
                ("label", pa.string()),
                ("score", pa.float32()),
                ("start", pa.int32()),
                ("end", pa.int32()),
                ("text", pa.string()),
            ]
        )
        return [pa.field("entities", pa.list_(entity), nullable=False)]

    def run(self, model: Model, inputs: "Sequence[str | Pair]") -> Answers:
        return model.entities([text for text in inputs if isinstance(text, str)])

    def arrays(self, answers: Sequence[Any]) -> list[pa.Array]:
        (field,) = self.schema()
        names = [inner.name for inner in field.type.value_type]
        rows = [
            [{name: getattr(entity, name) for name in names} for entity in of_text] for of_text in answers
        ]
        return [pa.array(rows, field.type)]


def columns_of(
    manifest: Manifest,
    *,
    prompt_name: str | None,
    dimensions: int | None,
    dtype: Dtype,
    ranges: Ranges | None = None,
) -> Columns:
    """The columns of the model's task. Raises InputError for an option that the task does not know."""
    task = manifest.head.task
    if task == "embed":
        return Vectors(manifest, prompt_name=prompt_name, dimensions=dimensions, dtype=dtype, ranges=ranges)
    for name, given in (("--prompt-name", prompt_name), ("--dimensions", dimensions)):
        if given is not None:
            raise InputError(
                f"{name}: {manifest.name} is made for {task!r}, only vectors have it. Leave it out."
            )
    if dtype != "float32":
        raise InputError(
            f"--dtype {dtype}: {manifest.name} is made for {task!r}, only vectors can be smaller."
        )
    if task == "rerank":
        return Scores()
    return Labels(manifest.head) if task == "classify" else Entities()


def _stored(dtype: Dtype) -> np.dtype[Any]:
    return np.dtype("int8" if dtype == "binary" else dtype)


def _lists(x_ND: npt.NDArray[N], kind: pa.DataType) -> pa.Array:
    """A fixed-size list a row, over the same memory."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(x_ND).reshape(-1)), type=kind)
