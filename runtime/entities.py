"""Token scores to entities, exactly as transformers' token-classification pipeline joins them.

Followed: transformers/pipelines/token_classification.py, version 5.23. n tokens, C labels; logits float32 [n, C].
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bei.errors import InputError
from bei.runtime.executor import Output
from bei.runtime.outputs import softmax
from bei.runtime.tokenizer import Spans

Strategy = Literal["none", "simple", "first", "average", "max"]
STRATEGIES: tuple[Strategy, ...] = ("none", "simple", "first", "average", "max")

OUTSIDE = ("O",)
"""Labels that mean: no entity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entity:
    """A piece of the text with a label: ``text`` is what stands at ``start`` … ``end`` (characters), ``score`` the
    label's probability as the strategy has it, ``logits`` float32 [C] the mean over its tokens. ``token_id`` is 0 where
    tokens were joined."""

    label: str
    score: float
    start: int
    end: int
    text: str
    logits: Output
    token_id: int = 0


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens ``first`` … ``last`` of a window, with one label and score."""

    label: str
    score: np.float32
    first: int
    last: int


def check_strategy(strategy: str, stride: int | None) -> None:
    """Raise InputError for an unknown strategy, and for windows where nothing joins their overlaps."""
    if strategy not in STRATEGIES:
        raise InputError(f"aggregation strategy: got {strategy!r}, need one of {', '.join(STRATEGIES)}.")
    if strategy == "none" and stride is not None:
        raise InputError(
            "aggregation strategy: 'none' knows no stride. Choose another, or leave out the stride."
        )


def entities(
    text: str,
    windows: Sequence[Spans],
    logits: Sequence[Output],
    labels: Sequence[str],
    strategy: Strategy = "simple",
    *,
    ignore: Collection[str] = OUTSIDE,
) -> list[Entity]:
    """The entities of one text, whose tokens are ``windows`` (`Tokenizer.encode_spans`) with their ``logits``.

    none: every token; simple: neighbours of one label; first, average, max: whole words, by their first token, their
    mean probabilities or their likeliest token, then neighbours. Special tokens and the labels of ``ignore`` are left
    out. Of entities that overlap in two windows the longer stays, of equally long ones the likelier.
    """
    found = [
        entity
        for spans, scores in zip(windows, logits, strict=True)
        for entity in _of_window(text, spans, scores, labels, strategy)
        if entity.label not in ignore
    ]
    return found if len(windows) == 1 else _without_overlaps(found)


def every_token(
    text: str, windows: Sequence[Spans], logits: Sequence[Output], labels: Sequence[str]
) -> list[Entity]:
    """One entity a token, special tokens and every label included."""
    return [
        _entity(text, spans, scores, piece, of_one_token=True)
        for spans, scores in zip(windows, logits, strict=True)
        for piece in _tokens(softmax(scores), range(len(scores)), labels)
    ]


def _of_window(
    text: str, spans: Spans, logits: Output, labels: Sequence[str], strategy: Strategy
) -> list[Entity]:
    probabilities = softmax(logits)
    tokens = np.flatnonzero(~spans.special).tolist()
    if strategy in WORDS:
        words = [_word(word, probabilities, labels, WORDS[strategy]) for word in _words(tokens, spans)]
        pieces = _groups(words)
    else:
        pieces = _tokens(probabilities, tokens, labels)
        if strategy == "simple":
            pieces = _groups(pieces)
    return [_entity(text, spans, logits, piece, of_one_token=strategy == "none") for piece in pieces]


def _tokens(probabilities: Output, tokens: Iterable[int], labels: Sequence[str]) -> list[_Piece]:
    best = probabilities.argmax(axis=1)
    return [_Piece(labels[best[i]], probabilities[i, best[i]], i, i) for i in tokens]


def _words(tokens: Sequence[int], spans: Spans) -> list[list[int]]:
    words: list[list[int]] = []
    for token in tokens:
        if words and spans.continues[token]:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _likeliest(probabilities: Output) -> Output:
    row: Output = probabilities[probabilities.max(axis=1).argmax()]
    return row


def _mean(probabilities: Output) -> Output:
    row: Output = probabilities.mean(axis=0)
    return row


WORDS: Mapping[str, Callable[[Output], Output]] = {
    "first": lambda probabilities: probabilities[0],
    "average": _mean,
    "max": _likeliest,
}
"""Strategies for whole words: from the probabilities of a word's tokens [n, C] to those of the word [C]."""


def _word(
    tokens: Sequence[int], probabilities: Output, labels: Sequence[str], joined: Callable[[Output], Output]
) -> _Piece:
    row = joined(probabilities[tokens])
    best = int(row.argmax())
    return _Piece(labels[best], row[best], tokens[0], tokens[-1])


def _groups(pieces: Iterable[_Piece]) -> list[_Piece]:
    """Neighbours with the same tag become one, unless the second begins an entity (B-)."""
    groups: list[list[_Piece]] = []
    for piece in pieces:
        begins, tag = _tag(piece.label)
        if groups and tag == _tag(groups[-1][-1].label)[1] and not begins:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return [_group(group) for group in groups]


def _group(group: Sequence[_Piece]) -> _Piece:
    score = np.mean(np.array([piece.score for piece in group], np.float32))
    return _Piece(group[0].label.split("-", 1)[-1], score, group[0].first, group[-1].last)


def _tag(label: str) -> tuple[bool, str]:
    """Whether the label begins an entity, and what it is without B- or I-."""
    marked = label.startswith(("B-", "I-"))
    return label.startswith("B-"), label[2:] if marked else label


def _entity(text: str, spans: Spans, logits: Output, piece: _Piece, *, of_one_token: bool) -> Entity:
    start, end = int(spans.offsets[piece.first, 0]), int(spans.offsets[piece.last, 1])
    return Entity(
        label=piece.label,
        score=float(piece.score),
        start=start,
        end=end,
        text=text[start:end],
        logits=logits[piece.first : piece.last + 1].mean(axis=0),
        token_id=int(spans.row.ids[piece.first]) if of_one_token else 0,
    )


def _without_overlaps(found: Iterable[Entity]) -> list[Entity]:
    """As the pipeline does it, to the letter: it compares the first entity with itself, so an empty one comes twice."""
    ordered = sorted(found, key=lambda entity: entity.start)
    kept = ordered[:1]
    for entity in ordered:
        last = kept[-1]
        if not last.start <= entity.start < last.end:
            kept.append(entity)
        elif (entity.end - entity.start, entity.score) > (last.end - last.start, last.score):
            kept[-1] = entity
    return kept
