"""One bundle, served: what the HTTP handlers call. Tokenisation in worker threads, engines behind the scheduler."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import numpy as np

from bei.errors import DeadlineExceeded, InputError
from bei.runtime import stages
from bei.runtime.executor import Executor, Output, Row
from bei.runtime.model import Model
from bei.runtime.outputs import check_dimensions, check_normalize, embeddings, non_finite
from bei.runtime.prompts import resolve_prompt
from bei.runtime.scheduler import Scheduler
from bei.runtime.tokenizer import Input, Side

TOKENIZER_THREADS = 2
CHARACTERS_A_TOKEN = 4
"""A guess, to hold a place in the queue for texts that are still being tokenised."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Truncation:
    """``max_length`` tokens at most, by cutting on ``side``, or by refusing when not ``allowed``."""

    max_length: int
    allowed: bool = True
    side: Side = "right"


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedded:
    """``vectors`` float32 [n, d]; ``tokens`` run for them; ``truncated`` inputs that lost tokens."""

    vectors: Output
    tokens: int
    truncated: int


class Service:
    """Belongs to one event loop, from `start` to `close`. The model stays its owner's to close."""

    def __init__(
        self,
        model: Model,
        *,
        name: str | None = None,
        max_queue_tokens: int,
        engines: Sequence[Executor] | None = None,
    ) -> None:
        """``engines`` are equal ones to share the work; the model's own when not given."""
        self.name = name or model.manifest.name
        self.manifest = model.manifest
        self.model = model
        self.scheduler = Scheduler(
            engines or [model.executor], model.budget, max_queue_tokens=max_queue_tokens
        )
        self._threads = ThreadPoolExecutor(TOKENIZER_THREADS, "bei-tokenize")

    def start(self) -> None:
        """Start the workers in the running event loop."""
        self.scheduler.start()

    @property
    def ready(self) -> bool:
        """Started, not draining, and with an engine that lives."""
        return self.scheduler.open

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
        timeout: float | None = None,
    ) -> Embedded:
        """One vector an input. Raises InputError, EngineError and the scheduler's errors."""
        head = self.manifest.head
        check_dimensions(head, dimensions)
        check_normalize(head, normalize)
        prompt = resolve_prompt(self.manifest, prompt_name=prompt_name, input_type=input_type)
        with self.scheduler.reserve(guess_tokens(inputs, truncation.max_length)):
            rows = await self._tokenize(inputs, prompt, truncation)
        raw = np.stack(await self._run(rows, timeout))
        return Embedded(
            vectors=embeddings(raw, head, dimensions, normalize),
            tokens=sum(len(row.ids) for row in rows),
            truncated=sum(row.dropped > 0 for row in rows),
        )

    async def _run(self, rows: Sequence[Row], timeout: float | None) -> list[Output]:
        """Each row's output, finite. What the fp32 engine has to do again keeps no other request waiting.

        Raises EngineError naming the rows for which it could not, and the scheduler's errors.
        """
        began = perf_counter()
        outputs = await self.scheduler.run(rows, timeout=timeout)
        bad = {index: rows[index] for index in non_finite(outputs)}
        if bad:
            again = asyncio.to_thread(self.model.rescue.outputs, bad)
            left = None if timeout is None else timeout - (perf_counter() - began)
            try:
                found = await asyncio.wait_for(again, left)
            except asyncio.TimeoutError:
                raise DeadlineExceeded(
                    f"not done within the {timeout:.3f} s that the client allows"
                ) from None
            outputs = [found.get(index, output) for index, output in enumerate(outputs)]
        return outputs

    async def _tokenize(
        self, inputs: Sequence[Input], prompt: str | None, truncation: Truncation
    ) -> list[Row]:
        encode = partial(
            self.model.tokenizer.encode,
            inputs,
            prompt=prompt,
            max_length=truncation.max_length,
            truncate=truncation.allowed,
            side=truncation.side,
        )
        with stages.stage("tokenize"):
            return await asyncio.get_running_loop().run_in_executor(self._threads, encode)


def guess_tokens(inputs: Sequence[Input], max_length: int) -> int:
    """Roughly the tokens that texts will give."""
    characters = (len(item) if isinstance(item, str) else CHARACTERS_A_TOKEN * len(item) for item in inputs)
    return sum(min(max_length, 2 + count // CHARACTERS_A_TOKEN) for count in characters)
