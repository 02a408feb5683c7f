"""Texts, pairs and token ids to rows, with Hugging Face's `tokenizers` library.

The library object is never reconfigured after loading, so one `Tokenizer` serves any number of threads: truncation is
done here, on the finished ids, exactly as the library would have done it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence

from bei.errors import BundleError, InputError
from bei.manifest import TokenizerSpec
from bei.runtime.bundle import Bundle
from bei.runtime.executor import Ids, Row

Side = Literal["left", "right"]
TokenIds: TypeAlias = "Sequence[int] | npt.NDArray[np.integer[Any]]"
Pair = tuple[str, str]
Text: TypeAlias = "str | Pair | TokenIds"


@dataclass(frozen=True, kw_only=True, slots=True)
class Spans:
    """Where a row's tokens lie in its text: ``offsets`` int32 [n, 2] in characters (the prompt's included), ``words``
    int32 [n] (−1 for special tokens), ``special`` bool [n]."""

    offsets: npt.NDArray[np.int32]
    words: npt.NDArray[np.int32]
    special: npt.NDArray[np.bool_]


class Tokenizer:
    """A bundle's tokenizer. Safe to use from several threads."""

    def __init__(self, library: tokenizers.Tokenizer, spec: TokenizerSpec) -> None:
        """Takes ``library`` over: removes its own truncation and padding, adds lower-casing where ``spec`` says so."""
        library.no_truncation()
        library.no_padding()
        if spec.lowercase:
            _add_lowercase(library)
        self.spec = spec
        self._library = library
        self._special_ids = {i for i, token in library.get_added_tokens_decoder().items() if token.special}
        self._prompt_tokens: dict[str, int] = {}

    def encode(
        self,
        texts: Sequence[Text],
        *,
        max_length: int,
        prompt: str | None = None,
        truncate: bool = True,
        side: Side = "right",
    ) -> list[Row]:
        """One row an input, in order: a text, a pair of texts, or token ids (used exactly as they are).

        ``prompt`` is put before each text (before a pair's first), as sentence-transformers does; it cannot go before
        token ids and is left out there. A row longer than ``max_length`` tokens (special tokens included) loses
        tokens on ``side`` and says how many in ``dropped``; without ``truncate`` it is refused.
        Raises InputError naming the index of the input.
        """
        rows: list[Row | None] = [None] * len(texts)
        strings: list[int] = []
        for index, text in enumerate(texts):
            if is_text(text):
                _check_text(text, index)
                strings.append(index)
            elif _is_pair(text):
                _check_text(text[0], index)
                _check_text(text[1], index)
                strings.append(index)
            else:
                rows[index] = self._given_row(text, index, max_length, side)
        prompted = [_prompted(texts[index], prompt) for index in strings]
        skip = self.prompt_tokens(prompt, max_length) if prompt else 0
        for index, encoding in zip(strings, self._library.encode_batch_fast(prompted), strict=True):
            kept = _kept(encoding, max_length, side)
            rows[index] = _row(encoding, kept, skip)
        done = [row for row in rows if row is not None]
        _check_lengths(done, truncate, max_length)
        return done

    def encode_spans(
        self, texts: Sequence[str], *, max_length: int, truncate: bool = True, side: Side = "right"
    ) -> tuple[list[Row], list[Spans]]:
        """Rows as `encode` gives them, and where their tokens lie. Slower than `encode`."""
        for index, text in enumerate(texts):
            _check_text(text, index)
        encodings = self._library.encode_batch(list(texts))
        kept = [_kept(encoding, max_length, side) for encoding in encodings]
        rows = [_row(encoding, keep, 0) for encoding, keep in zip(encodings, kept, strict=True)]
        _check_lengths(rows, truncate, max_length)
        return rows, [_spans(encoding, keep) for encoding, keep in zip(encodings, kept, strict=True)]

    def prompt_tokens(self, prompt: str, max_length: int) -> int:
        """Leading tokens that belong to the prompt, counted as sentence-transformers does for include_prompt=False:
        the prompt tokenised alone, less a trailing special token."""
        if prompt not in self._prompt_tokens:
            ids = self._library.encode(prompt).ids
            special = bool(ids) and ids[-1] in self._special_ids
            self._prompt_tokens[prompt] = len(ids) - special
        return min(self._prompt_tokens[prompt], max_length)

    def _given_row(self, given: object, index: int, max_length: int, side: Side) -> Row:
        ids = _as_ids(given, index)
        if not ids.size:
            raise InputError(f"input {index}: empty list of token ids. Send at least one id.")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.spec.vocab_size:
            bad = low if low < 0 else high
            raise InputError(f"input {index}: token id {bad} is outside 0 … {self.spec.vocab_size - 1}.")
        kept = ids[:max_length] if side == "right" else ids[-max_length:]
        kept = kept.astype(np.int32)
        return Row(ids=kept, types=np.zeros_like(kept), dropped=len(ids) - len(kept))


def open_tokenizer(bundle: Bundle) -> Tokenizer:
    """The bundle's tokenizer, checked against its golden ids. Raises BundleError."""
    spec = bundle.manifest.tokenizer
    try:
        library = tokenizers.Tokenizer.from_file(str(bundle.path / spec.file))
    except Exception as error:  # the library raises bare Exception
        raise BundleError(f"{bundle.path}: {spec.file}: not a tokenizer ({error}). Rebuild the bundle.") from None
    tokenizer = Tokenizer(library, spec)
    check_golden(tokenizer, str(bundle.path))
    return tokenizer


def check_golden(tokenizer: Tokenizer, subject: str) -> None:
    """Raise BundleError when the installed `tokenizers` gives other ids than when the bundle was built."""
    golden = tokenizer.spec.golden
    encodings = tokenizer._library.encode_batch_fast([entry.text for entry in golden])
    for entry, encoding in zip(golden, encodings, strict=True):
        if tuple(encoding.ids) != entry.ids:
            raise BundleError(
                f"{subject}: tokenizers {tokenizers.__version__} turns {entry.text!r:.60} into {encoding.ids[:8]} …, "
                f"but the bundle was built with {list(entry.ids[:8])} …. "
                "Install the version named in the manifest, or rebuild the bundle."
            )
