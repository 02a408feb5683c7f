"""Texts, pairs and token ids to rows, with Hugging Face's `tokenizers` library.

The library object is never reconfigured once loaded, so one `Tokenizer` serves any number of threads: truncation is
done here, on the finished ids, and gives what the library's own would have given.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import tokenizers

from bei.errors import BundleError, InputError
from bei.manifest import TokenizerSpec
from bei.runtime.bundle import Bundle
from bei.runtime.executor import Ids, Row
from bei.runtime.frame import Frame, Side, frame_of, no_room
from bei.runtime.pieces import line_of, pieces_of
from bei.runtime.windows import Windows

Pair = tuple[str, str]
TokenIds: TypeAlias = "Sequence[int] | npt.NDArray[np.integer[Any]]"
Input: TypeAlias = "str | Pair | TokenIds"

PROMPTS_REMEMBERED = 64

BLOCK = 1 << 17
"""Characters of texts whose pieces are looked up together: their arrays stay in a core's cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spans:
    """A row, and where its tokens lie in the text: ``offsets`` int32 [n, 2] in characters, ``special`` bool [n], and
    ``continues`` bool [n], whether a token goes on with the word of the one before, as transformers'
    token-classification pipeline decides it."""

    row: Row
    offsets: npt.NDArray[np.int32]
    special: npt.NDArray[np.bool_]
    continues: npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """One token of a text: what stands at ``start`` … ``stop`` (characters), or a special token's own name."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Tokenizer:
    """A bundle's tokenizer. Safe to use from several threads."""

    def __init__(self, library: tokenizers.Tokenizer, spec: TokenizerSpec) -> None:
        """Takes ``library`` over: its own truncation and padding go."""
        library.no_truncation()
        library.no_padding()
        self.spec = spec
        self._library = library
        # Without a post-processor the fast form leaves a pair's token types at 0.
        self._encode_batch = library.encode_batch_fast if library.post_processor else library.encode_batch
        self._special_ids = {i for i, token in library.get_added_tokens_decoder().items() if token.special}
        self._windows = Windows(library)
        self._frame = frame_of(library)
        self._pieces = pieces_of(library, self._frame) if self._frame else None
        self._word_pieces = bool(getattr(library.model, "continuing_subword_prefix", None))
        self._count_prompt = lru_cache(PROMPTS_REMEMBERED)(self._count_prompt_uncached)

    def encode(
        self,
        inputs: Sequence[Input],
        *,
        max_length: int,
        prompt: str | None = None,
        truncate: bool = True,
        side: Side = "right",
        positions: Sequence[int] | None = None,
    ) -> list[Row]:
        """One row an input, in order: a text, a pair of texts, or token ids (used exactly as they are).

        ``prompt`` goes before each text (before a pair's first), as in sentence-transformers; token ids take none. A row
        longer than ``max_length`` tokens (special tokens included) loses tokens on ``side`` and says how many in
        ``dropped``; without ``truncate`` it is refused. Raises InputError naming the input by its index, or by its
        entry in ``positions``.
        """
        names = range(len(inputs)) if positions is None else positions
        texts = [_as_text(item, name) for item, name in zip(inputs, names, strict=True)]
        skip = self.prompt_tokens(prompt, max_length) if prompt else 0
        prompted = [_prompted(text, prompt) for text in texts if text is not None]
        tokenized = iter(self._tokenized(prompted, skip, max_length, side))
        rows = []
        for item, text, name in zip(inputs, texts, names, strict=True):
            row = self._given_row(item, name, max_length, side) if text is None else next(tokenized)
            _check_row(row, name, truncate, max_length)
            rows.append(row)
        return rows

    def encode_spans(
        self,
        texts: Sequence[str],
        *,
        max_length: int,
        truncate: bool = True,
        side: Side = "right",
        stride: int | None = None,
    ) -> list[list[Spans]]:
        """Each text's row, as `encode` gives it, and where its tokens lie. Slower than `encode`.

        With a ``stride`` a long text is not cut but becomes several rows of at most ``max_length`` tokens, each
        beginning with the last ``stride`` tokens of the one before. Raises InputError.
        """
        for index, text in enumerate(texts):
            if not isinstance(_as_text(text, index), str):
                raise InputError(f"input {index}: need a text, got {type(text).__name__}.")
        if stride is not None:
            found = self._windows.encode(texts, max_length, stride)
            spans = [
                [self._spans(text, window, None) for window in windows]
                for text, windows in zip(texts, found, strict=True)
            ]
        else:
            encodings = self._library.encode_batch(list(texts))
            spans = [
                [self._spans(text, encoding, _kept(encoding, max_length, side))]
                for text, encoding in zip(texts, encodings, strict=True)
            ]
        for index, of_text in enumerate(spans):
            for one in of_text:
                _check_row(one.row, index, truncate, max_length)
        return spans

    def tokens(self, texts: Sequence[str], *, special: bool = True) -> list[list[Token]]:
        """Each text's tokens, nothing cut; with the special ones around them, or without. Raises InputError."""
        checked = [_checked(text, index) for index, text in enumerate(texts)]
        encodings = self._library.encode_batch(checked, add_special_tokens=special)
        return [_tokens(text, encoding) for text, encoding in zip(checked, encodings, strict=True)]

    def shorten(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """Each text up to the end of its ``max_tokens``-th token, special tokens not counted. Raises InputError."""
        checked = [_checked(text, index) for index, text in enumerate(texts)]
        encodings = self._library.encode_batch(checked, add_special_tokens=False)
        return [
            text if len(encoding) <= max_tokens else text[: encoding.offsets[max_tokens - 1][1]]
            for text, encoding in zip(checked, encodings, strict=True)
        ]

    def decode(self, ids: Sequence[TokenIds], *, skip_special: bool = True) -> list[str]:
        """Token ids back to texts. Raises InputError."""
        rows = [_as_ids(row, index, self.spec.vocab_size).tolist() for index, row in enumerate(ids)]
        texts: list[str] = self._library.decode_batch(rows, skip_special_tokens=skip_special)
        return texts

    def prompt_tokens(self, prompt: str, max_length: int) -> int:
        """Leading tokens that belong to the prompt, counted as sentence-transformers does for include_prompt=False:
        the prompt tokenised alone, without the special token at its end."""
        length, closed = self._count_prompt(prompt)
        return min(length, max_length) - closed

    def check_golden(self, subject: str) -> None:
        """Raise BundleError when the installed `tokenizers` gives other ids than when the bundle was built."""
        encodings = self._library.encode_batch_fast([entry.text for entry in self.spec.golden])
        for entry, encoding in zip(self.spec.golden, encodings, strict=True):
            if tuple(encoding.ids) != entry.ids:
                raise BundleError(
                    f"{subject}: tokenizers {tokenizers.__version__} turns {entry.text[:40]!r} into other ids than "
                    f"the bundle was built with (got {encoding.ids[:8]}, need {list(entry.ids[:8])}). "
                    "Rebuild the bundle with bei-compile, or install the tokenizers version it was built with."
                )

    def _count_prompt_uncached(self, prompt: str) -> tuple[int, bool]:
        ids = self._library.encode(prompt).ids
        return len(ids), bool(ids) and ids[-1] in self._special_ids

    def _tokenized(
        self, texts: Sequence[str | Pair], skip: int, max_length: int, side: Side
    ) -> Iterator[Row]:
        """A row a text; ``skip`` tokens of each are a prompt's."""
        singles = [text for text in texts if isinstance(text, str)]
        if self._frame and len(singles) == len(texts):
            for block in _blocks(singles) if self._pieces else [singles]:
                yield from self._framed(block, self._frame, skip, max_length, side)
        else:
            for encoding in self._encode_batch(texts):
                yield _row(encoding, _kept(encoding, max_length, side), skip)

    def _framed(
        self, texts: Sequence[str], frame: Frame, skip: int, max_length: int, side: Side
    ) -> Iterator[Row]:
        """Rows of single texts, whose tokens all have type 0."""
        line = self._pieces.encode(texts) if self._pieces else None
        if line is None:
            line = line_of(self._encode_batch(texts))
        types = np.zeros_like(line.ids)
        types.flags.writeable = False  # the rows share it
        for start, stop in pairwise([0, *line.ends.tolist()]):
            ids, dropped = line.ids[start:stop], max(0, stop - start - max_length)
            if dropped:
                ids = frame.cut(ids, max_length, side)
            yield Row(ids=ids, types=types[: len(ids)], prompt_tokens=skip, dropped=dropped)

    def _spans(self, text: str, encoding: tokenizers.Encoding, keep: npt.NDArray[np.bool_] | None) -> Spans:
        row = _row(encoding, keep, 0)
        where = slice(None) if keep is None else keep
        offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)[where]
        return Spans(
            row=row,
            offsets=offsets,
            special=np.array(encoding.special_tokens_mask, bool)[where],
            continues=self._continues(text, row.ids, offsets),
        )

    def _continues(self, text: str, ids: Ids, offsets: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """The pipeline's rule (transformers/pipelines/token_classification.py, gather_pre_entities): a word piece is
        longer or shorter than its text; where tokens show no word pieces, one without a space before it continues."""
        found = np.zeros(len(ids), bool)
        for i, (token, (start, stop)) in enumerate(zip(ids.tolist(), offsets.tolist(), strict=True)):
            if token == self.spec.unk_id:
                continue
            if self._word_pieces:
                found[i] = len(self._library.id_to_token(token) or "") != stop - start
            else:
                found[i] = start > 0 and " " not in text[start - 1 : start + 1]
        return found

    def _given_row(self, item: object, index: int, max_length: int, side: Side) -> Row:
        ids = _as_ids(item, index, self.spec.vocab_size)
        kept = ids[:max_length] if side == "right" else ids[-max_length:]
        return Row(ids=kept, types=np.zeros_like(kept), dropped=len(ids) - len(kept))


def open_tokenizer(bundle: Bundle) -> Tokenizer:
    """The bundle's tokenizer, checked against its golden ids. Raises BundleError."""
    spec = bundle.manifest.tokenizer
    try:
        library = tokenizers.Tokenizer.from_file(str(bundle.path / spec.file))
    except Exception as error:  # the library raises bare Exception
        raise BundleError(
            f"{bundle.path}: {spec.file}: {error}. Rebuild the bundle with bei-compile."
        ) from error
    tokenizer = Tokenizer(library, spec)
    tokenizer.check_golden(str(bundle.path))
    return tokenizer


def _as_text(item: object, index: int) -> str | Pair | None:
    """The text or pair, checked; None for anything else."""
    if isinstance(item, str):
        return _checked(item, index)
    if isinstance(item, tuple | list) and len(item) == 2 and all(isinstance(part, str) for part in item):
        return _checked(item[0], index), _checked(item[1], index)
    return None


def _checked(text: str, index: int) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"input {index}: lone surrogate U+{ord(text[error.start]):04X} at character {error.start}. "
                "Send valid Unicode."
            ) from None
    return text


def _prompted(text: str | Pair, prompt: str | None) -> str | Pair:
    if not prompt:
        return text
    return prompt + text if isinstance(text, str) else (prompt + text[0], text[1])


def _as_ids(item: object, index: int, vocab: int) -> Ids:
    """int32 ids, each in the vocabulary; raises InputError."""
    if isinstance(item, np.ndarray):
        item = item.tolist()
    if not isinstance(item, Sequence) or isinstance(item, bytes | bytearray):
        raise InputError(
            f"input {index}: got {type(item).__name__}, need a text, a pair of texts or a list of token ids."
        )
    if not item:
        raise InputError(f"input {index}: empty list of token ids. Send at least one id.")
    for token in item:
        if not isinstance(token, int | np.integer) or isinstance(token, bool):
            raise InputError(f"input {index}: got {type(token).__name__} among the token ids, need integers.")
        if not 0 <= token < vocab:
            raise InputError(f"input {index}: token id {token} is outside 0 … {vocab - 1}.")
    return np.array(item, np.int32)


def _kept(encoding: tokenizers.Encoding, max_length: int, side: Side) -> npt.NDArray[np.bool_] | None:
    """bool [n], True for the tokens that truncation leaves; None where all stay."""
    if len(encoding) <= max_length:
        return None
    sequence = np.array([-1 if s is None else s for s in encoding.sequence_ids])
    sequence[np.array(encoding.special_tokens_mask, bool)] = -1
    return _keep(sequence, max_length, side)


def _keep(sequence: npt.NDArray[np.int64], max_length: int, side: Side) -> npt.NDArray[np.bool_]:
    """bool [n], True for the tokens that truncation leaves, of whose texts ``sequence`` tells the number.

    Special tokens (-1) stay. The rest is cut as `tokenizers` does for ``longest_first``: a pair's longer half first.
    """
    special = sequence < 0
    room = max_length - int(special.sum())
    if room <= 0:
        raise no_room(max_length, int(special.sum()))
    lengths = [int((sequence == half).sum()) for half in (0, 1)]
    keep = special
    for half, count in enumerate(_longest_first(lengths[0], lengths[1], room)):
        where = np.flatnonzero(sequence == half)
        keep[where[:count] if side == "right" else where[len(where) - count :]] = True
    return keep


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Tokens left of each half of a pair (``truncate_encodings`` in the library's truncation.rs)."""
    if first + second <= room:
        return first, second
    short, long = sorted((first, second))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (short, long) if first <= second else (long, short)


def _blocks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Runs of texts of about `BLOCK` characters, or one longer text."""
    start = characters = 0
    for index, text in enumerate(texts):
        characters += len(text)
        if characters > BLOCK and index > start:
            yield texts[start:index]
            start, characters = index, len(text)
    if texts:
        yield texts[start:]


def _row(encoding: tokenizers.Encoding, keep: npt.NDArray[np.bool_] | None, prompt_tokens: int) -> Row:
    return _cut(np.array(encoding.ids, np.int32), np.array(encoding.type_ids, np.int32), keep, prompt_tokens)


def _cut(ids: Ids, types: Ids, keep: npt.NDArray[np.bool_] | None, prompt_tokens: int) -> Row:
    if keep is None:
        return Row(ids=ids, types=types, prompt_tokens=prompt_tokens)
    kept = ids[keep]
    return Row(ids=kept, types=types[keep], prompt_tokens=prompt_tokens, dropped=len(ids) - len(kept))


def _tokens(text: str, encoding: tokenizers.Encoding) -> list[Token]:
    made = []
    for id, name, special, (start, stop) in zip(
        encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True
    ):
        if special:
            made.append(Token(id=id, text=name, special=True, start=None, stop=None))
        else:
            made.append(Token(id=id, text=text[start:stop], special=False, start=start, stop=stop))
    return made


def _check_row(row: Row, index: int, truncate: bool, max_length: int) -> None:
    if not len(row.ids):
        raise InputError(f"input {index}: gives no tokens. Send a text that is not empty.")
    if row.dropped and not truncate:
        raise InputError(
            f"input {index}: {len(row.ids) + row.dropped} tokens, but at most {max_length} fit. "
            "Shorten it, or ask for truncation."
        )
