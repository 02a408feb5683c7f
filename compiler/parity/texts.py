"""The texts an engine is tried on when the user brings none: many scripts, every length, and what breaks tokenizers.

The words are in ``texts.json``; the set depends only on that file, the task, the longest input and the prompt names,
so two reports with one digest speak of the same texts.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import msgspec

from bei.errors import ParityError
from bei.manifest import Task

WORDS_FILE = Path(__file__).with_name("texts.json")


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One input. ``kind`` says what it is there for; ``pair`` is the second text of a pair; pairs of one ``group``
    are documents of one query, to be ranked against each other; ``prompt`` is the name of one of the model's prompts."""

    kind: str
    text: str
    pair: str | None = None
    group: int | None = None
    prompt: str | None = None


class _Topic(msgspec.Struct, frozen=True):
    query: str
    texts: tuple[str, ...]


class _Hard(msgspec.Struct, frozen=True):
    kind: str
    text: str


class _Words(msgspec.Struct, frozen=True):
    version: int
    words: str
    topics: tuple[_Topic, ...]
    scripts: tuple[str, ...]
    hard: tuple[_Hard, ...]
    names: tuple[str, ...]


def builtin(
    task: Task, max_length: int, *, prompts: Sequence[str] = (), full: bool = False
) -> tuple[Sample, ...]:
    """About 200 inputs, or about 700 when ``full``; the longest ones reach and pass ``max_length`` tokens."""
    singles = tuple(_singles(max_length, full))
    if task == "rerank":
        return tuple(_groups(singles))
    prompted = _prompted(prompts, full) if task in ("embed", "embed-tokens") else ()
    return (*singles, *prompted)


def digest(samples: Sequence[Sample]) -> str:
    """SHA-256 (hex) over the samples' JSON."""
    return hashlib.sha256(msgspec.json.encode(samples)).hexdigest()


def require_fit(samples: Sequence[Sample], task: Task, where: str) -> None:
    """Raises ParityError when there are no samples, or pairs and task do not go together."""
    if not samples:
        raise ParityError(f"{where}: no texts (need at least 1).")
    for number, sample in enumerate(samples, 1):
        if task == "rerank" and sample.pair is None:
            raise ParityError(
                f"{where}: text {number} is not a pair, but a reranker scores pairs. Give query and document."
            )
        if task in ("embed", "embed-tokens", "token-classify") and sample.pair is not None:
            raise ParityError(f"{where}: text {number} is a pair, but the task is {task}. Give single texts.")


def _singles(max_length: int, full: bool) -> Iterator[Sample]:
    words = _words()
    for topic in words.topics:
        yield from (Sample(kind="topic", text=text) for text in topic.texts)
    yield from (Sample(kind="script", text=text) for text in words.scripts)
    yield from (Sample(kind="names", text=text) for text in words.names)
    yield from (Sample(kind=hard.kind, text=hard.text) for hard in words.hard)
    yield from (Sample(kind="length", text=_running_text(n)) for n in _lengths(max_length, full))
    if full:
        yield from _mixtures()


def _mixtures() -> Iterator[Sample]:
    """Longer, mixed texts: whole topics, every hard text inside a sentence, neighbouring scripts side by side."""
    words = _words()
    sentences = [text for topic in words.topics for text in topic.texts]
    for topic in words.topics:
        for size in range(2, len(topic.texts) + 1):
            yield Sample(kind="paragraph", text=" ".join(topic.texts[:size]))
    for i, hard in enumerate(words.hard):
        before, after = sentences[i % len(sentences)], sentences[(i + 7) % len(sentences)]
        yield Sample(kind=hard.kind, text=f"{before} {hard.text} {after}")
    for a, b in pairwise((*words.scripts, *words.names, *(topic.query for topic in words.topics))):
        yield Sample(kind="script", text=f"{a} {b}")
        yield Sample(kind="script", text=f"{b}\n\n{a} {b}")
    for i, sentence in enumerate(sentences):
        yield Sample(kind="case", text=sentence.upper())
        yield Sample(kind="repeat", text=" ".join([sentence] * (2 + i % 3)))


def _lengths(max_length: int, full: bool) -> list[int]:
    """Word counts: a ladder from 1 to ``max_length``, exactly full with two special tokens, and half as much again."""
    step = 1.15 if full else 1.6
    ladder, n = set(range(1, 33)) if full else {1}, 1.0
    while n < max_length - 2:
        ladder.add(round(n))
        n = max(n + 1, n * step)
    return sorted({*ladder, max(1, max_length - 2), max_length + max_length // 2})


def _running_text(n: int) -> str:
    """n frequent English words, one token each in most vocabularies; each length starts elsewhere in the list."""
    words = _words().words.split()
    return " ".join(words[(31 * n + i) % len(words)] for i in range(n))


def _prompted(prompts: Sequence[str], full: bool) -> Iterator[Sample]:
    """Every prompt of the model with a few texts of different length."""
    words = _words()
    for name in prompts:
        for topic in words.topics if full else words.topics[:3]:
            yield Sample(kind="prompt", text=topic.query, prompt=name)
        yield Sample(kind="prompt", text=_running_text(60), prompt=name)


def _groups(singles: Sequence[Sample]) -> Iterator[Sample]:
    """Pairs: each topic's query with its own texts and some of the next topics', then every other text as a document."""
    topics = _words().topics
    for i, topic in enumerate(topics):
        others = (topics[(i + step) % len(topics)].texts[step % 5] for step in (1, 2, 3))
        yield from (
            Sample(kind="topic", text=topic.query, pair=text, group=i) for text in (*topic.texts, *others)
        )
    rest = [sample for sample in singles if sample.kind != "topic"]
    for i, sample in enumerate(rest):
        group = i % len(topics)
        yield Sample(kind=sample.kind, text=topics[group].query, pair=sample.text, group=len(topics) + group)
    yield Sample(kind="length", text=_running_text(300), pair=_running_text(250))


@cache
def _words() -> _Words:
    return msgspec.json.decode(WORDS_FILE.read_bytes(), type=_Words, strict=True)
