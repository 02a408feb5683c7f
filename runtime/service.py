"""One bundle, served: what the HTTP handlers call. Tokenisation in worker threads, engines behind the scheduler."""

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from bei.errors import EngineError, InputError
from bei.runtime import stages
from bei.runtime.entities import Entity, Strategy, check_strategy, entities, every_token
from bei.runtime.executor import Executor, Output, Row
from bei.runtime.frame import Side
from bei.runtime.model import Model
from bei.runtime.outputs import check_dimensions, check_normalize, embeddings, non_finite, scores
from bei.runtime.pace import HANG_SECONDS
from bei.runtime.prompts import check_promptable, resolve_prompt, with_prompts
from bei.runtime.scheduler import Scheduler
from bei.runtime.tokenizer import Input, Pair, Spans, Token, TokenIds

TOKENIZER_THREADS = 2
MAX_NUMBERS = 1 << 24
"""Of one answer with a vector a token: some 350 MB of JSON."""

CHARACTERS_A_TOKEN = 4
"""A guess, to hold a place in the queue for texts that are still being tokenised."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Truncation:
    """``max_length`` tokens at most, by cutting on ``side``, or by refusing when not ``allowed``."""

    max_length: int
    allowed: bool = True
    side: Side = "right"


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a request took: ``characters`` that came, ``tokens`` run for them, and tokens cut off each input."""

    characters: int
    tokens: int
    dropped: tuple[int, ...]

    @property
    def truncated(self) -> int:
        """Inputs that lost tokens."""
        return sum(count > 0 for count in self.dropped)


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedded:
    """``vectors`` float32 [n, d]."""

    vectors: Output
    work: Work


@dataclass(frozen=True, kw_only=True, slots=True)
class TokensEmbedded:
    """``vectors`` float32 [tokens, d], one array an input."""

    vectors: list[Output]
    work: Work


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """``scores`` float32 [n, labels]: probabilities, or logits where those were asked for."""

    scores: Output
    work: Work


@dataclass(frozen=True, kw_only=True, slots=True)
class Tagged:
    """Each text's ``entities``."""

    entities: list[list[Entity]]
    work: Work


class Service:
    """Belongs to one event loop, from `start` to `close`. The model stays its owner's to close."""

    def __init__(
        self,
        model: Model,
        *,
        name: str | None = None,
        prompts: Mapping[str, str] = MappingProxyType({}),
        default_prompt: str | None = None,
        max_queue_tokens: int,
        engines: Sequence[Executor] | None = None,
        hang_seconds: float = HANG_SECONDS,
    ) -> None:
        """``prompts`` and their default come beside the bundle's own and before them; ``engines`` are equal ones to share
        the work; the model's own when not given. ``hang_seconds``: see `Pace`. Raises InputError for a default that names
        no prompt."""
        self.name = name or model.manifest.name
        self.manifest = with_prompts(model.manifest, prompts, default_prompt)
        self.model = model
        self._engines = engines or [model.executor]
        self.scheduler = Scheduler(
            self._engines, model.budget, max_queue_tokens=max_queue_tokens, hang_seconds=hang_seconds
        )
        self._threads = ThreadPoolExecutor(TOKENIZER_THREADS, "bei-tokenize")

    def warm_up(self) -> None:
        """Run every shape class on every engine, which also tells what a batch may take. Raises EngineError."""
        for tokens, seconds in self.model.warm_up(self._engines):
            self.scheduler.pace.note(tokens, seconds)

    def start(self) -> None:
        """Start the workers in the running event loop."""
        self.scheduler.start()

    @property
    def ready(self) -> bool:
        """Started, not draining, and with an engine that lives."""
        return self.scheduler.open

    @property
    def lost(self) -> bool:
        """Started, but with no engine left: it will never answer again."""
        return self.scheduler.lost

    async def close(self, drain_seconds: float) -> None:
        """Finish what was accepted, within ``drain_seconds``; refuse what is new."""
        await self.scheduler.close(drain_seconds)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def truncation(
        self, max_length: int | None = None, *, allowed: bool = True, side: Side = "right"
    ) -> Truncation:
        """At most the model's own limit. Raises InputError for a limit outside 1 … that."""
        limit = self.manifest.limits.max_length
        if max_length is not None and not 1 <= max_length <= limit:
            raise InputError(f"truncate_prompt_tokens: got {max_length}, need -1 or 1 … {limit}.")
        return Truncation(max_length=max_length or limit, allowed=allowed, side=side)

    async def embed(
        self,
        inputs: Sequence[Input],
        *,
        truncation: Truncation,
        prompt_name: str | None = None,
        input_type: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
    ) -> Embedded:
        """One vector an input. Raises InputError, EngineError and the scheduler's errors."""
        head = self.manifest.head
        check_dimensions(head, dimensions)
        check_normalize(head, normalize)
        prompt = self._prompt(inputs, prompt_name, input_type)
        raw, work = await self._pooled(inputs, prompt, truncation)
        return Embedded(vectors=embeddings(raw, head, dimensions, normalize), work=work)

    async def embed_tokens(
        self, inputs: Sequence[Input], *, truncation: Truncation, prompt_name: str | None = None
    ) -> TokensEmbedded:
        """A vector for each token of each input. Raises InputError, also for more than MAX_NUMBERS, EngineError and the
        scheduler's errors."""
        rows, work = await self._rows(inputs, self._prompt(inputs, prompt_name), truncation)
        numbers = work.tokens * self.manifest.head.dimensions
        if numbers > MAX_NUMBERS:
            raise InputError(
                f"inputs: {work.tokens} tokens make {numbers} numbers, at most {MAX_NUMBERS} fit in one answer. "
                "Send fewer texts."
            )
        return TokensEmbedded(vectors=await self._run(rows), work=work)

    async def score(self, inputs: Sequence[Input], *, truncation: Truncation, raw: bool = False) -> Scored:
        """Every label's score for each text or pair. Raises InputError, EngineError and the scheduler's errors."""
        head = self.manifest.head
        logits, work = await self._pooled(inputs, resolve_prompt(self.manifest), truncation)
        self._check_labels(logits.shape[1])
        return Scored(scores=logits if raw else scores(logits, head), work=work)

    async def rerank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        truncation: Truncation,
        raw: bool = False,
        max_tokens: int | None = None,
    ) -> Scored:
        """The relevance of each text, scores [n, 1]; of a text's first ``max_tokens`` only, where given."""
        if max_tokens is not None:
            texts = await self._tokenize(self.model.tokenizer.shorten, texts, max_tokens)
        pairs: list[Pair] = [(query, text) for text in texts]
        return await self.score(pairs, truncation=truncation, raw=raw)

    async def tag(
        self,
        texts: Sequence[str],
        *,
        truncation: Truncation,
        strategy: Strategy,
        stride: int | None = None,
    ) -> Tagged:
        """Each text's entities; with ``none`` its tokens, special ones and those without a label included.

        With a ``stride`` long texts are not cut but read in overlapping windows. Raises InputError, EngineError and the
        scheduler's errors.
        """
        check_strategy(strategy, stride)
        encode = partial(
            self.model.tokenizer.encode_spans,
            max_length=truncation.max_length,
            truncate=truncation.allowed,
            side=truncation.side,
            stride=stride,
        )
        with self.scheduler.reserve(guess_tokens(texts, sys.maxsize if stride else truncation.max_length)):
            spans = await self._tokenize(encode, texts)
        rows = [one.row for of_text in spans for one in of_text]
        logits = await self._run(rows)
        labels = self.manifest.head.labels
        self._check_labels(logits[0].shape[1])
        found = await self._thread(_tagged, texts, spans, iter(logits), labels, strategy)
        dropped = tuple(sum(one.row.dropped for one in of_text) for of_text in spans)
        return Tagged(entities=found, work=_work(texts, rows, dropped))

    async def tokenize(
        self, texts: Sequence[str], *, special: bool = True, prompt_name: str | None = None
    ) -> list[list[Token]]:
        """Each text's tokens, those of the prompt before it included. Raises InputError."""
        prompt = resolve_prompt(self.manifest, prompt_name=prompt_name) or ""
        prompted = [f"{prompt}{text}" for text in texts]
        return await self._tokenize(partial(self.model.tokenizer.tokens, special=special), prompted)

    async def decode(self, ids: Sequence[TokenIds], *, skip_special: bool = True) -> list[str]:
        """Token ids back to texts. Raises InputError."""
        return await self._tokenize(partial(self.model.tokenizer.decode, skip_special=skip_special), ids)

    async def _run(self, rows: Sequence[Row]) -> list[Output]:
        """Each row's output, finite. What the fp32 engine has to do again keeps no other request waiting.

        Raises EngineError naming the rows for which it could not, and the scheduler's errors.
        """
        outputs = await self.scheduler.run(rows)
        bad = {index: rows[index] for index in non_finite(outputs)}
        if bad:
            found = await asyncio.to_thread(self.model.rescue.outputs, bad)
            outputs = [found.get(index, output) for index, output in enumerate(outputs)]
        return outputs

    def _prompt(
        self, inputs: Sequence[Input], prompt_name: str | None, input_type: str | None = None
    ) -> str | None:
        """What goes before each text. Raises InputError."""
        prompt = resolve_prompt(self.manifest, prompt_name=prompt_name, input_type=input_type)
        if prompt_name is not None or input_type is not None:
            check_promptable(inputs, prompt)
        return prompt

    async def _pooled(
        self, inputs: Sequence[Input], prompt: str | None, truncation: Truncation
    ) -> tuple[Output, Work]:
        """The engine's output [n, width], every number finite."""
        rows, work = await self._rows(inputs, prompt, truncation)
        return np.stack(await self._run(rows)), work

    async def _rows(
        self, inputs: Sequence[Input], prompt: str | None, truncation: Truncation
    ) -> tuple[list[Row], Work]:
        """The inputs tokenised, one row each."""
        encode = partial(
            self.model.tokenizer.encode,
            prompt=prompt,
            max_length=truncation.max_length,
            truncate=truncation.allowed,
            side=truncation.side,
        )
        with self.scheduler.reserve(guess_tokens(inputs, truncation.max_length)):
            rows = await self._tokenize(encode, inputs)
        return rows, _work(inputs, rows, tuple(row.dropped for row in rows))

    async def _tokenize(self, function: Callable[..., T], *arguments: object) -> T:
        with stages.stage("tokenize"):
            return await self._thread(function, *arguments)

    async def _thread(self, function: Callable[..., T], *arguments: object) -> T:
        """In one of the tokenizer's threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def _check_labels(self, width: int) -> None:
        labels = self.manifest.head.labels
        if width != len(labels):
            missing = (
                f"label {len(labels)} has no name" if width > len(labels) else "there are too many names"
            )
            raise EngineError(
                f"{self.name}: the model gives {width} scores for {len(labels)} labels: {missing}. "
                "Correct id2label in the checkpoint's config.json and compile it again."
            )


def _tagged(
    texts: Sequence[str],
    spans: Sequence[Sequence[Spans]],
    logits: Iterator[Output],
    labels: Sequence[str],
    strategy: Strategy,
) -> list[list[Entity]]:
    """Each text's entities; ``logits`` are those of all windows, in order."""
    join = every_token if strategy == "none" else partial(entities, strategy=strategy)
    return [
        join(text, windows, [next(logits) for _ in windows], labels)
        for text, windows in zip(texts, spans, strict=True)
    ]


def guess_tokens(inputs: Sequence[Input], max_length: int) -> int:
    """Roughly the tokens that texts will give."""
    return sum(min(max_length, 2 + _characters(item) // CHARACTERS_A_TOKEN) for item in inputs)


def _characters(item: Input) -> int:
    """An input's length, where token ids count as the characters they may stand for."""
    if isinstance(item, str):
        return len(item)
    if isinstance(item, tuple):
        return sum(map(len, item))
    return CHARACTERS_A_TOKEN * len(item)


def _work(inputs: Sequence[Input], rows: Sequence[Row], dropped: tuple[int, ...]) -> Work:
    return Work(
        characters=sum(_characters(item) for item in inputs if isinstance(item, str | tuple)),
        tokens=sum(len(row.ids) for row in rows),
        dropped=dropped,
    )
