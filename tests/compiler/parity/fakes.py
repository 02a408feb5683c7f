"""An engine and a reference that are pure arithmetic, with faults to order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bei.compiler.parity.texts import Sample
from bei.errors import EngineError
from bei.manifest import HeadSpec, Limits, Task
from bei.runtime.executor import Row

F32 = npt.NDArray[np.float32]
LIMITS = Limits(max_length=64, max_batch_tokens=640, max_batch=32)
WIDTH = {"embed": 16, "embed-tokens": 16, "classify": 4, "rerank": 1, "token-classify": 5}


def ids_of(sample: Sample, max_length: int = 64) -> list[int]:
    """One token a character, between two special ones."""
    text = sample.text if sample.pair is None else f"{sample.text}|{sample.pair}"
    return [1, *(2 + ord(c) % 90 for c in text[: max_length - 2]), 99]


def answer(task: Task, ids: Sequence[int]) -> F32:
    """A function of the ids alone: a mean over random token vectors, or one of them a token."""
    table = np.random.default_rng(5).standard_normal((100, WIDTH[task])).astype(np.float32)
    places = np.cos(np.arange(len(ids)))[:, None].astype(np.float32)
    tokens = (table[list(ids)] + 0.1 * places).astype(np.float32)
    return (
        tokens
        if task in ("embed-tokens", "token-classify")
        else np.asarray(tokens.mean(axis=0) * 3, np.float32)
    )


def spans(logits: Sequence[F32]) -> list[list[tuple[int, int, str]]]:
    best = [x.argmax(axis=1) for x in logits]
    return [[(i, i + 1, str(label)) for i, label in enumerate(row) if label] for row in best]


@dataclass(kw_only=True)
class FakeReference:
    """Implements `TokenReference`: a span is a token whose largest logit is not the first."""

    task: Task = "embed"
    name: str = "arithmetic"
    versions: Mapping[str, str] = field(default_factory=lambda: {"numpy": np.__version__})

    def token_ids(self, samples: Sequence[Sample]) -> list[list[int]]:
        return [ids_of(sample) for sample in samples]

    def outputs(self, samples: Sequence[Sample]) -> list[F32]:
        return [answer(self.task, ids_of(sample)) for sample in samples]

    def spans(
        self, samples: Sequence[Sample], logits: Sequence[F32], strategy: str
    ) -> list[list[tuple[int, int, str]]]:
        return spans(logits)


@dataclass(kw_only=True)
class FakeEngine:
    """Implements `Subject`. ``noise`` is added to every number, ``padding_leak`` and ``neighbour_leak`` to rows that
    have padding or neighbours; ``nan_text`` makes the result of that text NaN; ``offset`` shifts token ids;
    ``forgets`` so many of each text's entities."""

    task: Task = "embed"
    target: str = "fake-cpu"
    precision: str = "fp32"
    device: str = "arithmetic unit"
    device_class: str = "cpu"
    versions: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = LIMITS
    noise: float = 0.0
    scale: float = 1.0
    padding_leak: float = 0.0
    neighbour_leak: float = 0.0
    nan_text: str | None = None
    offset: int = 0
    forgets: int = 0
    broken: bool = False
    problem_type: str | None = None
    calls: list[list[int]] = field(default_factory=list)

    @property
    def head(self) -> HeadSpec:
        return HeadSpec(
            task=self.task,
            output="x",
            dimensions=WIDTH[self.task],
            pooling=(),
            include_prompt=True,
            normalized=False,
            problem_type=self.problem_type,
        )

    def rows(self, samples: Sequence[Sample]) -> list[Row]:
        ids = [np.array(ids_of(sample), np.int32) + self.offset for sample in samples]
        return [Row(ids=i, types=np.zeros_like(i)) for i in ids]

    def run(self, rows: list[Row]) -> list[F32]:
        if self.broken:
            raise EngineError("fake-cpu: out of memory")
        lengths = [row.ids.size for row in rows]
        self.calls.append(lengths)
        assert max(lengths) * len(rows) <= self.limits.max_batch_tokens
        return [self._row(row, max(lengths), len(rows)) for row in rows]

    def outputs(self, samples: Sequence[Sample]) -> list[F32]:
        results = [self.run([row])[0] for row in self.rows(samples)]
        for i, sample in enumerate(samples):
            if sample.text == self.nan_text:
                results[i] = results[i] * np.float32(np.nan)
        return results

    def spans(
        self, samples: Sequence[Sample], logits: Sequence[F32], strategy: str
    ) -> list[list[tuple[int, int, str]]]:
        return [found[self.forgets :] for found in spans(logits)]

    def _row(self, row: Row, longest: int, neighbours: int) -> F32:
        ids = (row.ids - self.offset).tolist()
        x = answer(self.task, ids) * np.float32(self.scale)
        x = x + np.random.default_rng(sum(ids)).standard_normal(x.shape) * self.noise
        x = x + self.padding_leak * (row.ids.size < longest) + self.neighbour_leak * (neighbours > 1)
        return x.astype(np.float32)
