"""Small vocabularies of each kind, trained on corpus.txt, and where every token goes.

Special tokens near the start keep their real ids; those at the end of the real vocabulary come right after the trained
pieces, or, with ``full``, where they really are, the ids between being filled with pieces that no text contains.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from bei.compiler.zoo.fact_files import TokenizerFacts

CORPUS = Path(__file__).with_name("corpus.txt")
PIECES = 900
"""Trained pieces, the 256 bytes of a byte-level tokenizer not counted."""

SPARE = 4
"""Unused tokens that a small vocabulary has after its last special token, where the real one has more of them."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS: Mapping[str, str] = {
    "qwen2": rf"{_CONTRACTIONS}|\p{{N}}|{_REST}",
    "llama3": rf"{_CONTRACTIONS}|\p{{N}}{{1,3}}|{_REST}",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """Trained pieces in order; merges of a BPE, scores of a Unigram model (one a piece)."""

    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...] = ()
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """``tokens`` by id; those from ``base`` on are added tokens only. ``scores`` go with the tokens of a Unigram."""

    tokens: tuple[str, ...]
    base: int
    special: frozenset[str]
    merges: tuple[tuple[str, str], ...]
    scores: tuple[float, ...]

    @property
    def ids(self) -> dict[str, int]:
        """Token → id."""
        return {token: i for i, token in enumerate(self.tokens)}


def vocabulary(facts: TokenizerFacts, *, full: bool) -> Vocabulary:
    """Lay the trained pieces and the special tokens out."""
    pieces = _train(facts.kind, facts.split, facts.lowercase, facts.nfc)
    tail_start = min((i for i in facts.ids.values() if i >= 1000), default=facts.size)
    front = {i: token for token, i in facts.ids.items() if i < tail_start}
    tail = {i - tail_start: token for token, i in facts.ids.items() if i >= tail_start}
    fillers = (name for name in map(facts.unused.format, count()) if name not in facts.ids)
    tokens, placed = _front(front, pieces.tokens, fillers)
    while full and len(tokens) < tail_start:
        tokens.append(next(fillers))
    base = len(tokens)
    for i in range(_tail_length(facts.size - tail_start, tail, full)):
        tokens.append(tail.get(i) or next(fillers))
    return Vocabulary(
        tokens=tuple(tokens),
        base=base if facts.added else len(tokens),
        special=frozenset(facts.ids),
        merges=pieces.merges,
        scores=_scores(pieces, placed, len(tokens)),
    )


def _front(
    special: Mapping[int, str], pieces: tuple[str, ...], fillers: Iterator[str]
) -> tuple[list[str], list[int]]:
    """Tokens up to the last trained piece, and the ids of the trained pieces."""
    tokens = [special.get(i) or next(fillers) for i in range(max(special, default=-1) + 1)]
    fresh = [piece for piece in pieces if piece not in special.values()]
    return tokens + fresh, list(range(len(tokens), len(tokens) + len(fresh)))


def _tail_length(real: int, tail: Mapping[int, str], full: bool) -> int:
    return real if full else min(real, max(tail, default=-1) + 1 + SPARE)


def _scores(pieces: Pieces, placed: list[int], total: int) -> tuple[float, ...]:
    """Log probabilities: 0 for what is not trained in front, the lowest one for fillers and what follows."""
    if not pieces.scores:
        return ()
    scores = [0.0] * placed[0] + list(pieces.scores)
    return tuple(scores + [min(pieces.scores)] * (total - len(scores)))


# --- training


@cache
def _train(kind: str, split: str | None, lowercase: bool, nfc: bool) -> Pieces:
    """Byte-pair encoding is trained; the other models' pieces are those it uses, because their own trainers give
    another vocabulary each time."""
    match kind:
        case "wordpiece":
            return _wordpiece(lowercase)
        case "byte-bpe":
            return _byte_bpe(split, nfc)
        case "unigram":
            return _unigram()
        case _:
            return _sentencepiece_bpe()


def _wordpiece(lowercase: bool) -> Pieces:
    """Pieces that start a word, and ## before those that continue one; every character as both."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    bpe.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    characters = _trained(bpe).characters
    used: Counter[str] = Counter()
    for encoding in bpe.encode_batch(_corpus()):
        words = [None, *encoding.word_ids]
        inner = (here == before for before, here in pairwise(words))
        used.update(f"##{piece}" if i else piece for i, piece in zip(inner, encoding.tokens, strict=True))
    alphabet = [*characters, *(f"##{c}" for c in characters)]
    return Pieces(tokens=(*alphabet, *_by_use(used, without=alphabet)))


def _byte_bpe(split: str | None, nfc: bool) -> Pieces:
    bpe = Tokenizer(models.BPE())
    if nfc:
        bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = byte_level(split, add_prefix_space=False)
    trained = _trained(bpe, pre_tokenizers.ByteLevel.alphabet())
    return Pieces(tokens=trained.tokens, merges=trained.merges)


def _unigram() -> Pieces:
    """Scores are log probabilities of the pieces in the corpus; what was merged away counts once."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokens = _trained(bpe).tokens
    used = Counter(dict.fromkeys(tokens, 1))
    for encoding in bpe.encode_batch(_corpus()):
        used.update(encoding.tokens)
    total = used.total()
    ordered = _by_use(used)
    return Pieces(tokens=ordered, scores=tuple(round(math.log(used[t] / total), 6) for t in ordered))


def _sentencepiece_bpe() -> Pieces:
    """Words start with ▁; the 256 bytes come first, for text that the pieces cannot spell."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never")
    trained = _trained(bpe)
    codes = tuple(f"<0x{byte:02X}>" for byte in range(256))
    return Pieces(tokens=codes + trained.tokens, merges=trained.merges)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bpe:
    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]

    @property
    def characters(self) -> tuple[str, ...]:
        return tuple(sorted(token for token in self.tokens if len(token) == 1))


def _trained(bpe: Tokenizer, alphabet: Sequence[str] = ()) -> _Bpe:
    """Train in place, and read what was learnt."""
    trainer = trainers.BpeTrainer(
        vocab_size=max(PIECES, len(alphabet) + PIECES),
        initial_alphabet=list(alphabet),
        min_frequency=2,
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    model = json.loads(bpe.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return _Bpe(tokens=tuple(tokens), merges=tuple((first, second) for first, second in model["merges"]))


def _by_use(used: Counter[str], without: Sequence[str] = ()) -> tuple[str, ...]:
    """The most frequent first, equal ones in alphabetical order."""
    return tuple(sorted(used.keys() - set(without), key=lambda piece: (-used[piece], piece)))


def byte_level(split: str | None, *, add_prefix_space: bool) -> Any:
    """The pre-tokenizer of GPT-2, or of Qwen2 or Llama 3, which split by a pattern of their own first."""
    if split == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    assert split is not None
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLITS[split]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False),
        ]
    )


def _corpus() -> list[str]:
    return CORPUS.read_text(encoding="utf-8").splitlines()
