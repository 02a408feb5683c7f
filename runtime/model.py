"""The Python API: open a bundle, encode, rerank, classify, find entities.

with bei.load("minilm.bundle") as model:
    model.encode(["a", "b"])        # float32 [2, dimensions]
"""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from bei.errors import EngineError, InputError
from bei.manifest import EngineRecord, Manifest, Task
from bei.runtime.batching import budget_for
from bei.runtime.bundle import Bundle, Choice, choose_engine, read_bundle, verify_files
from bei.runtime.entities import OUTSIDE, Entity, Strategy, check_strategy, entities
from bei.runtime.executor import Executor, Guarded, Output, Row
from bei.runtime.executors import registry
from bei.runtime.outputs import (
    check_dimensions,
    check_normalize,
    embeddings,
    non_finite,
    scores,
    softmax,
)
from bei.runtime.pipeline import Pipeline, planned
from bei.runtime.prompts import check_promptable, resolve_prompt
from bei.runtime.rescue import Rescue, spare_engine
from bei.runtime.tokenizer import Input, Pair, Spans, Tokenizer, open_tokenizer
from bei.runtime.warm_up import shape_classes, warm_up

if TYPE_CHECKING:
    from typing_extensions import Self

WEIGHTS = ".safetensors"
"""Plain numbers, hashed while the engine starts: wrong ones cannot harm it, and no result comes out before the hash."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenScores:
    """One text's tokens: where they lie, and the probability of each label, float32 [n, labels]."""

    spans: Spans
    scores: Output


class Model:
    """A loaded bundle and its running engine. Safe to use from several threads; close it, or use it in a `with`."""

    def __init__(
        self,
        bundle: Bundle,
        choice: Choice,
        tokenizer: Tokenizer,
        executor: Executor,
        rescue: Rescue | None = None,
    ) -> None:
        self.bundle = bundle
        self.choice = choice
        self.tokenizer = tokenizer
        self.executor = Guarded(executor)
        self.rescue = rescue or Rescue()
        self.budget = budget_for(choice.record, bundle.manifest.limits)
        self._closed = False
        self._pipeline = Pipeline(self.executor)

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def target(self) -> str:
        """The engine that runs."""
        return self.choice.record.target

    @property
    def max_length(self) -> int:
        """Tokens a text may have, special tokens included; what is longer is cut."""
        return self.manifest.limits.max_length

    def encode(
        self,
        texts: "str | Sequence[Input]",
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        dimensions: int | None = None,
        batch_tokens: int | None = None,
        normalize: bool | None = None,
    ) -> Output:
        """Embeddings, float32 [n, d] in the order of ``texts``; [d] for a single string.

        As in sentence-transformers: a ``prompt`` (or the bundle's one of that name, or its default) goes before each
        text, long texts are cut. An input may also be a list of token ids, used exactly. ``dimensions`` keeps a
        prefix, of unit length again where the model normalises; ``normalize`` True normalises any model's vectors.
        ``batch_tokens`` overrides the engine's measured batch size. Raises InputError, EngineError.
        """
        self._need("embed")
        head = self.manifest.head
        check_dimensions(head, dimensions)
        check_normalize(head, normalize)
        single = isinstance(texts, str)
        inputs = [texts] if isinstance(texts, str) else _listed(texts)
        resolved = resolve_prompt(self.manifest, prompt_name=prompt_name, prompt=prompt)
        if prompt_name is not None or prompt is not None:
            check_promptable(inputs, resolved)
        raw = self._pooled(inputs, resolved, batch_tokens)
        vectors = embeddings(raw, head, dimensions, normalize)
        return vectors[0] if single else vectors

    def encode_tokens(
        self, texts: Sequence[Input], *, prompt_name: str | None = None, prompt: str | None = None
    ) -> list[Output]:
        """A vector for each token of each text, float32 [n, d], special tokens and a prompt's included; as `encode`
        otherwise. Raises InputError, EngineError."""
        self._need("embed-tokens")
        inputs = _listed(texts)
        resolved = resolve_prompt(self.manifest, prompt_name=prompt_name, prompt=prompt)
        if prompt_name is not None or prompt is not None:
            check_promptable(inputs, resolved)
        return self._per_token(self.tokenizer.encode(inputs, max_length=self.max_length, prompt=resolved))

    def rerank(self, query: str, texts: Sequence[str], *, raw: bool = False) -> Output:
        """Relevance of each text to the query, float32 [n] in the order of ``texts``: in 0 … 1, or with ``raw`` the
        model's logits. Raises InputError, EngineError."""
        self._need("rerank")
        pairs = [_pair(query, text, index) for index, text in enumerate(_listed(texts))]
        logits = self._pooled(pairs, resolve_prompt(self.manifest))
        return (logits if raw else scores(logits, self.manifest.head))[:, 0]

    def predict(self, texts: "str | Sequence[str | Pair]", *, raw: bool = False) -> Output:
        """Label probabilities, float32 [n, labels] ([labels] for a single string), or with ``raw`` logits.

        Columns as in ``manifest.head.labels``. Raises InputError, EngineError.
        """
        self._need("classify", "rerank")
        single = isinstance(texts, str)
        inputs = [texts] if isinstance(texts, str) else _listed(texts)
        logits = self._pooled(inputs, resolve_prompt(self.manifest))
        result = logits if raw else scores(logits, self.manifest.head)
        return result[0] if single else result

    def predict_tokens(self, texts: Sequence[str], *, raw: bool = False) -> list[TokenScores]:
        """Every token's label probabilities (with ``raw`` logits), one entry a text; long texts are cut.

        Raises InputError, EngineError.
        """
        self._need("token-classify")
        spans = self.tokenizer.encode_spans(_listed(texts), max_length=self.max_length)
        logits = self._logits(spans)
        return [
            TokenScores(spans=of_text[0], scores=found[0] if raw else softmax(found[0]))
            for of_text, found in zip(spans, logits, strict=True)
        ]

    def entities(
        self,
        texts: Sequence[str],
        *,
        strategy: Strategy = "simple",
        stride: int | None = None,
        ignore: Collection[str] = OUTSIDE,
    ) -> list[list[Entity]]:
        """Each text's entities, as transformers' token-classification pipeline finds them with that
        ``aggregation_strategy``, ``stride`` and ``ignore_labels``.

        Without a ``stride`` long texts are cut; with one they are read in windows that overlap by so many tokens.
        Raises InputError, EngineError.
        """
        self._need("token-classify")
        listed = _listed(texts)
        check_strategy(strategy, stride)
        spans = self.tokenizer.encode_spans(listed, max_length=self.max_length, stride=stride)
        labels = self.manifest.head.labels
        return [
            entities(text, of_text, logits, labels, strategy, ignore=ignore)
            for text, of_text, logits in zip(listed, spans, self._logits(spans), strict=True)
        ]

    def warm_up(self, engines: Sequence[Executor] | None = None) -> list[tuple[int, float]]:
        """Run every shape class on ``engines`` (default: the model's own), so that no request pays for a first time:
        tokens and seconds of each call. Raises EngineError."""
        (row,) = self.tokenizer.encode(["warm up"], max_length=self.max_length)
        shapes = shape_classes(self.budget, self.max_length, gpu=self.choice.record.device != "cpu")
        return [took for engine in engines or [self.executor] for took in warm_up(engine, row, shapes)]

    def limit_batches(self, tokens: int) -> None:
        """Give the engine at most so many tokens a call, padding included (a single text may be longer), instead of its
        measured batch size. Raises InputError for more than the bundle was compiled for."""
        most = self.manifest.limits.max_batch_tokens
        if tokens > most:
            raise InputError(
                f"max_batch_tokens: got {tokens}, {self.manifest.name} was compiled for at most {most}. Compile it again "
                "with a larger --max-batch-tokens."
            )
        self.budget = budget_for(self.choice.record, self.manifest.limits, tokens)

    def close(self) -> None:
        """Release the engine; further calls are errors."""
        self._closed = True
        self._pipeline.close()
        self.executor.close()
        self.rescue.close()

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _need(self, *tasks: Task) -> None:
        if self._closed:
            raise EngineError(f"{self.manifest.name}: the model is closed. Load it again.")
        task = self.manifest.head.task
        if task not in tasks:
            raise InputError(
                f"{self.manifest.name}: made for {task!r}, this call needs {' or '.join(tasks)}."
            )

    def _logits(self, spans: Sequence[Sequence[Spans]]) -> list[list[Output]]:
        """Of each text's rows."""
        in_order = iter(self._per_token([one.row for of_text in spans for one in of_text]))
        return [[next(in_order) for _ in of_text] for of_text in spans]

    def _per_token(self, rows: Sequence[Row]) -> list[Output]:
        """The engine's output [n, width] for each row, in order."""
        found: dict[int, Output] = {}
        for batch, made in self._pipeline.run(planned(rows, self.budget)):
            found.update(zip(batch.positions.tolist(), made, strict=True))
        bad = non_finite([found[index] for index in range(len(rows))])
        found |= self.rescue.outputs({index: rows[index] for index in bad})
        return [found[index] for index in range(len(rows))]

    def _pooled(self, inputs: Sequence[Input], prompt: str | None, batch_tokens: int | None = None) -> Output:
        """The engine's output [n, width], rows in the order of ``inputs``."""
        budget = (
            budget_for(self.choice.record, self.manifest.limits, batch_tokens)
            if batch_tokens
            else self.budget
        )

        def encode(chosen: Sequence[Input], positions: Sequence[int]) -> list[Row]:
            return self.tokenizer.encode(
                chosen, max_length=self.max_length, prompt=prompt, positions=positions
            )

        head = self.manifest.head
        out = np.empty(
            (len(inputs), head.dimensions if head.task == "embed" else len(head.labels)), np.float32
        )
        bad: dict[int, Row] = {}
        for batch, made in self._pipeline.run(self._pipeline.batches(inputs, encode, budget)):
            out[batch.positions] = made
            bad |= {int(batch.positions[index]): batch.rows[index] for index in non_finite(made)}
        for position, row in self.rescue.outputs(bad).items():
            out[position] = row
        return out


def load(
    path: str | os.PathLike[str],
    *,
    target: str | None = None,
    threads: int | None = None,
    allow_unverified: bool = False,
    device: int = 0,
) -> Model:
    """Open a bundle, verify it, and start an engine.

    ``target`` names the engine (default: the first of the bundle's fallback chain that runs here and passed parity; one
    that then cannot be started is passed over for the next); ``threads`` CPU threads (default: what this process may
    use); ``device`` the GPU's index. ``allow_unverified`` accepts an engine that did not pass parity. Raises
    BundleError, EngineError.
    """
    bundle = read_bundle(path)
    files = bundle.manifest.files
    weights = {name for name in files if name.endswith(WEIGHTS)}
    choose_engine(bundle.manifest, target=target, allow_unverified=allow_unverified, device=device)
    verify_files(bundle, files.keys() - weights)

    def start(record: EngineRecord) -> Executor:
        return registry.create(bundle.path, record, bundle.manifest, threads=threads, device=device)

    with ThreadPoolExecutor(2, "bei-load") as pool:  # leaving it waits for both
        verified = pool.submit(verify_files, bundle, weights)
        started = pool.submit(
            _start, bundle.manifest, start, target=target, allow=allow_unverified, device=device
        )
        tokenizer = open_tokenizer(bundle)
    choice, executor = started.result()
    try:
        verified.result()
    except BaseException:
        executor.close()
        raise
    spare = spare_engine(bundle.manifest, choice.record, start, allow_unverified=allow_unverified)
    return Model(bundle, choice, tokenizer, executor, Rescue(spare))


def _start(
    manifest: Manifest,
    start: Callable[[EngineRecord], Executor],
    *,
    target: str | None,
    allow: bool,
    device: int,
) -> tuple[Choice, Executor]:
    """Start the chosen engine; unless it was asked for by name, one that fails is passed over for the next."""
    failed: dict[str, str] = {}
    while True:
        choice = choose_engine(
            manifest,
            target=target,
            allow_unverified=allow,
            device=device,
            available=lambda record: failed.get(record.target) or registry.available(record),
        )
        try:
            return choice, start(choice.record)
        except EngineError as error:
            if target is not None:
                raise
            failed[choice.record.target] = str(error)


def _listed(texts: object) -> list[Any]:
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
        raise InputError(f"texts: got {type(texts).__name__}, need a list of texts.")
    return list(texts)


def _pair(query: object, text: object, index: int) -> Pair:
    for part in (query, text):
        if not isinstance(part, str):
            raise InputError(f"input {index}: got {type(part).__name__}, need a query and a text.")
    return (str(query), str(text))
