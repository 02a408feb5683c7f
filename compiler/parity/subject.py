"""An engine of a bundle as the thing under test: the runtime's own model, driven through its public calls."""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bei.compiler.parity.reference import Span
from bei.compiler.parity.texts import Sample
from bei.errors import EngineError
from bei.gpu import device_class
from bei.manifest import EngineRecord, HeadSpec, Limits, Manifest
from bei.runtime.batching import plan
from bei.runtime.bundle import Bundle, Choice
from bei.runtime.entities import Strategy, entities
from bei.runtime.executor import Row
from bei.runtime.executors import registry
from bei.runtime.model import Model
from bei.runtime.prompts import resolve_prompt
from bei.runtime.tokenizer import Pair, Tokenizer, open_tokenizer

F32 = npt.NDArray[np.float32]
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleEngine:
    """Implements `bei.compiler.parity.run.Subject`."""

    model: Model

    @property
    def record(self) -> EngineRecord:
        """The engine's entry in the manifest."""
        return self.model.choice.record

    @property
    def target(self) -> str:
        return self.record.target

    @property
    def precision(self) -> str:
        return self.record.precision

    @property
    def head(self) -> HeadSpec:
        return self.model.manifest.head

    @property
    def limits(self) -> Limits:
        return self.model.manifest.limits

    @property
    def device(self) -> str:
        name = str(self.model.executor.describe().get("device", self.record.device))
        return f"{name}, {platform.machine()}" if name == "cpu" else name

    @property
    def device_class(self) -> str | None:
        return device_class(self.record.device)

    @property
    def versions(self) -> Mapping[str, str]:
        """The build's tools, in the versions that run now where the executor knows them."""
        running = self.model.executor.describe()
        versions = {tool: str(running.get(tool, built)) for tool, built in self.record.tool_versions.items()}
        return versions | {name: str(running[name]) for name in ("polygraphy",) if name in running}

    def rows(self, samples: Sequence[Sample]) -> list[Row]:
        return tokenize(self.model.manifest, self.model.tokenizer, samples)

    def run(self, rows: list[Row]) -> Sequence[F32]:
        return list(self.model.executor.run(rows))

    def outputs(self, samples: Sequence[Sample]) -> Sequence[F32]:
        try:
            return _by_prompt(samples, self._public)
        except (
            EngineError
        ):  # NaN and Inf are refused there, but counted here; any other failure comes back below
            return self._unchecked(samples)

    def spans(self, samples: Sequence[Sample], logits: Sequence[F32], strategy: Strategy) -> list[list[Span]]:
        labels, texts = self.head.labels, [sample.text for sample in samples]
        tokens = self.model.tokenizer.encode_spans(texts, max_length=self.limits.max_length)
        found = (
            entities(text, windows, [scores], labels, strategy)
            for text, windows, scores in zip(texts, tokens, logits, strict=True)
        )
        return [[(entity.start, entity.end, entity.label) for entity in of_text] for of_text in found]

    def _public(self, samples: Sequence[Sample], prompt: str | None) -> Sequence[F32]:
        match self.head.task:
            case "embed":
                return list(self.model.encode([sample.text for sample in samples], prompt_name=prompt))
            case "embed-tokens":
                return self.model.encode_tokens([sample.text for sample in samples], prompt_name=prompt)
            case "token-classify":
                found = self.model.predict_tokens([sample.text for sample in samples], raw=True)
                return [tokens.scores for tokens in found]
            case "classify" | "rerank":
                return list(self.model.predict([_text_or_pair(sample) for sample in samples], raw=True))

    def _unchecked(self, samples: Sequence[Sample]) -> list[F32]:
        rows = self.rows(samples)
        results: dict[int, F32] = {}
        for batch in plan([row.ids.size for row in rows], self.model.budget):
            results.update(zip(batch, self.run([rows[i] for i in batch]), strict=True))
        return [results[i] for i in range(len(rows))]


@contextmanager
def bundle_engine(
    bundle: Bundle, record: EngineRecord, runner: registry.Backend = registry
) -> Iterator[BundleEngine]:
    """Load one engine, certified or not, and with no other to repair its numbers; it is closed afterwards.

    Raises EngineError or BundleError.
    """
    tokenizer = open_tokenizer(bundle)
    executor = runner.create(bundle.path, record, bundle.manifest)
    with Model(bundle, Choice(record=record), tokenizer, executor) as model:
        yield BundleEngine(model=model)


def tokenize(manifest: Manifest, tokenizer: Tokenizer, samples: Sequence[Sample]) -> list[Row]:
    """Rows as the runtime makes them, prompts in front."""

    def rows(chosen: Sequence[Sample], prompt: str | None) -> list[Row]:
        return tokenizer.encode(
            [_text_or_pair(sample) for sample in chosen],
            max_length=manifest.limits.max_length,
            prompt=resolve_prompt(manifest, prompt_name=prompt),
        )

    return _by_prompt(samples, rows)


def _by_prompt(
    samples: Sequence[Sample], run: Callable[[Sequence[Sample], str | None], Sequence[Result]]
) -> list[Result]:
    """Results in the order of ``samples``, one call for each prompt among them."""
    results: dict[int, Result] = {}
    for prompt in sorted({sample.prompt for sample in samples}, key=str):
        chosen = [i for i, sample in enumerate(samples) if sample.prompt == prompt]
        results.update(zip(chosen, run([samples[i] for i in chosen], prompt), strict=True))
    return [results[i] for i in range(len(samples))]


def _text_or_pair(sample: Sample) -> str | Pair:
    return sample.text if sample.pair is None else (sample.text, sample.pair)
