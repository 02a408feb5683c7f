"""Ids of a text put together from those of its pieces between spaces, which are remembered from text to text.

Where no rule of a tokenizer reaches across a space (BERT's: characters are normalised one by one, a space ends a word, and
WordPiece sees one word at a time), a text's ids are those of its pieces one after the other. Languages repeat their words, so
the `tokenizers` library is asked for few of them.
"""

from collections.abc import Sequence
from itertools import chain
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from bei.runtime.executor import Ids

SPACE = " "
REMEMBERED = 1 << 19
"""Characters of all pieces together, about 90,000 words in 20 MB; past it all are forgotten."""
NEW = 0.25
"""Share of pieces that may be new for this to pay: by itself a piece costs the library three times what it costs in its text."""
FEW = 64
"""New pieces that are looked up in any case, so that frequent ones are known soon."""

Known: TypeAlias = dict[str, bytes]


class Pieces:
    """Single texts to ids; ``before`` and ``after`` are the special tokens around them. Safe to use from several threads."""

    def __init__(self, library: tokenizers.Tokenizer, before: Sequence[int], after: Sequence[int]) -> None:
        self._library = library
        self._before, self._after = _packed(before), _packed(after)
        self._special = len(before), len(after)
        self._known: Known = {}
        self._characters = 0

    def encode(self, texts: Sequence[str]) -> list[Ids] | None:
        """Each text's ids, special tokens included, as the library gives them; None where so much is new that the library is
        faster over whole texts. The arrays are read-only."""
        known = self._known  # grows, and is never emptied: another takes its place
        split = [text.split(SPACE) for text in texts]
        new = list(set(chain.from_iterable(split)).difference(known))
        pays = len(new) <= max(FEW, NEW * sum(map(len, split)))
        if new:
            self._learn(known, new if pays else new[:FEW])
        return [self._joined(known, pieces) for pieces in split] if pays else None

    def sequence(self, length: int) -> npt.NDArray[np.int64]:
        """Of a text's ids: -1 for special tokens, 0 for its own."""
        before, after = self._special
        found = np.zeros(length, np.int64)
        found[:before] = found[length - after :] = -1
        return found

    def _joined(self, known: Known, pieces: list[str]) -> Ids:
        data = b"".join([self._before, *map(known.__getitem__, pieces), self._after])
        return np.frombuffer(data, np.int32)

    def _learn(self, known: Known, new: list[str]) -> None:
        encodings = self._library.encode_batch_fast(new, add_special_tokens=False)
        known.update((piece, _packed(found.ids)) for piece, found in zip(new, encodings, strict=True))
        self._characters += sum(map(len, new))
        if self._characters > REMEMBERED:
            self._known, self._characters = {}, 0


def pieces_of(library: tokenizers.Tokenizer) -> Pieces | None:
    """None for a tokenizer that may look across a space, or that gives a single text's tokens types other than 0."""
    separable = (
        isinstance(library.normalizer, normalizers.BertNormalizer)
        and isinstance(library.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        and isinstance(library.model, models.WordPiece)
        and all(
            SPACE not in token.content and not token.normalized
            for token in library.get_added_tokens_decoder().values()
        )
    )
    if not separable:
        return None
    whole, own = library.encode("a"), library.encode("a", add_special_tokens=False).ids
    before = whole.special_tokens_mask.index(0)
    after = before + len(own)
    if any(whole.type_ids) or whole.ids[before:after] != own or not all(whole.special_tokens_mask[after:]):
        return None
    return Pieces(library, whole.ids[:before], whole.ids[after:])


def _packed(ids: Sequence[int]) -> bytes:
    return np.array(ids, np.int32).tobytes()
