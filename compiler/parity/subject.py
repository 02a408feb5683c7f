"""An engine of a bundle as the thing under test."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bei.compiler.parity.reference import BATCH_TOKENS, batches
from bei.compiler.parity.texts import Sample
from bei.errors import ParityError
from bei.manifest import EngineRecord, HeadSpec, Limits, Manifest
from bei.runtime.bundle import Bundle
from bei.runtime.executor import Executor, Row
from bei.runtime.executors import registry
from bei.runtime.tokenizer import Input, Tokenizer, open_tokenizer

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleEngine:
    """Implements `bei.compiler.parity.run.Subject` with the runtime's own tokenizer and executor."""

    manifest: Manifest
    record: EngineRecord
    tokenizer: Tokenizer
    executor: Executor

    @property
    def target(self) -> str:
        return self.record.target

    @property
    def precision(self) -> str:
        return self.record.precision

    @property
    def head(self) -> HeadSpec:
        return self.manifest.head

    @property
    def limits(self) -> Limits:
        return self.manifest.limits

    @property
    def device(self) -> str:
        name = str(self.executor.describe().get("device", self.record.device))
        return f"{name}, {platform.machine()}" if name == "cpu" else name

    @property
    def versions(self) -> Mapping[str, str]:
        """The build's tools, in the versions that run now where the executor knows them."""
        running = self.executor.describe()
        return {tool: str(running.get(tool, built)) for tool, built in self.record.tool_versions.items()}

    def rows(self, samples: Sequence[Sample]) -> list[Row]:
        rows: dict[int, Row] = {}
        for prompt in sorted({sample.prompt for sample in samples}, key=str):
            chosen = [i for i, sample in enumerate(samples) if sample.prompt == prompt]
            inputs: list[Input] = [_input(samples[i]) for i in chosen]
            made = self.tokenizer.encode(
                inputs, max_length=self.limits.max_length, prompt=self._prompt(prompt)
            )
            rows.update(zip(chosen, made, strict=True))
        return [rows[i] for i in range(len(samples))]

    def run(self, rows: list[Row]) -> Sequence[F32]:
        return list(self.executor.run(rows))

    def outputs(self, samples: Sequence[Sample]) -> Sequence[F32]:
        rows = self.rows(samples)
        results: dict[int, F32] = {}
        budget = min(BATCH_TOKENS, self.limits.max_batch_tokens)
        for batch in batches([row.ids.size for row in rows], budget):
            for start in range(0, len(batch), self.limits.max_batch):
                part = batch[start : start + self.limits.max_batch]
                results.update(zip(part, self.run([rows[i] for i in part]), strict=True))
        return [results[i] for i in range(len(rows))]

    def _prompt(self, name: str | None) -> str | None:
        name = name or self.manifest.default_prompt
        if name is None:
            return None
        if name not in self.manifest.prompts:
            raise ParityError(f"{self.manifest.name}: the bundle has no prompt named {name!r}.")
        return self.manifest.prompts[name]


@contextmanager
def bundle_engine(bundle: Bundle, record: EngineRecord) -> Iterator[BundleEngine]:
    """Load one engine, certified or not; it is closed afterwards. Raises EngineError or BundleError."""
    executor = registry.create(bundle.path, record, bundle.manifest)
    try:
        yield BundleEngine(
            manifest=bundle.manifest, record=record, tokenizer=open_tokenizer(bundle), executor=executor
        )
    finally:
        executor.close()


def _input(sample: Sample) -> Input:
    return sample.text if sample.pair is None else (sample.text, sample.pair)
