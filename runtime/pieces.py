"""Ids of a text put together from those of its pieces between spaces, which are remembered from text to text.

Where no rule of a tokenizer reaches across a space (BERT's: characters are normalised one by one, a space ends a word, and
WordPiece sees one word at a time), a text's ids are those of its pieces one after the other. Languages repeat their words, so
the `tokenizers` library is asked for few of them. Many texts are cut, looked up and joined together, as arrays.
"""

import threading
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from bei.runtime.executor import Ids
from bei.runtime.frame import Frame
from bei.runtime.piece_table import LONGEST, PieceTable, Places, lanes_of

SPACE = " "
BETWEEN = None
"""Stands between texts, and before the first and after the last."""
MARK = b"\xff"
"""The same among bytes: UTF-8 has no such byte."""
ROOM = bytes(LONGEST)
EMPTY_NUMBER, BETWEEN_NUMBER = 0, 1

REMEMBERED = 1 << 19
"""Characters of all pieces together, about 90,000 words in 20 MB; past it all are forgotten."""
NEW = 0.4
"""Share of pieces that may be new for this to pay: by itself a piece costs the library 2.5 times what it costs in its text."""
FEW = 64
"""New pieces that are looked up in any case, so that frequent ones are known soon; of many, one in so many."""
SMALL = 4096
"""Characters of all texts from which on arrays pay."""


class Line(NamedTuple):
    """Ids of several texts in one line, int32 [T], and where each text's end there, int64 [n]."""

    ids: Ids
    ends: Places


def line_of(encodings: Sequence[tokenizers.Encoding]) -> Line:
    """Taken from the library's objects one after the other: their lists are large, and none is kept."""
    ends = np.cumsum([len(encoding) for encoding in encodings], dtype=np.int64)
    ids = chain.from_iterable(encoding.ids for encoding in encodings)
    return Line(np.fromiter(ids, np.int32), ends)


class Memory:
    """Pieces by number: their names and ids. It only grows, by one thread at a time; any may read numbers and join.

    ``table`` has the numbers of those that were met among bytes, and belongs to one thread at a time.
    """

    def __init__(self, between: Sequence[int]) -> None:
        self.table = PieceTable()
        self.table.add(
            lanes_of(np.frombuffer(MARK + ROOM, np.uint8), np.array([0]), np.array([1])),
            np.array([BETWEEN_NUMBER]),
        )
        self.numbers: dict[str | None, int] = {"": EMPTY_NUMBER, BETWEEN: BETWEEN_NUMBER}
        self.characters = 0
        self._ids = np.array(between, np.int32)
        self._starts, self._counts = np.array([0, 0]), np.array([0, len(between)])

    def learn(self, names: Sequence[str], line: Line) -> None:
        """The ids of pieces that have no number yet."""
        counts = np.diff(line.ends, prepend=0)
        starts = len(self._ids) + line.ends - counts
        self._ids = np.concatenate([self._ids, line.ids])
        self._starts = np.concatenate([self._starts, starts])
        self._counts = np.concatenate([self._counts, counts])
        first = len(self.numbers)
        self.numbers.update((name, first + i) for i, name in enumerate(names))
        self.characters += sum(map(len, names))

    def join(self, numbers: Places) -> Line:
        """The ids of these pieces."""
        counts = self._counts[numbers]
        ends = np.cumsum(counts)
        source = np.repeat(self._starts[numbers] - (ends - counts), counts)
        source += np.arange(len(source))
        return Line(self._ids[source], ends)


class Pieces:
    """Single texts to ids. Safe to use from several threads."""

    def __init__(self, library: tokenizers.Tokenizer, frame: Frame) -> None:
        self._library = library
        self._frame = frame
        self._memory = self._empty()
        self._alone = threading.Lock()

    def encode(self, texts: Sequence[str]) -> Line | None:
        """The texts' ids, special tokens included, as the library gives them; None where so much is new that the library is
        faster over whole texts."""
        memory = self._memory
        small = sum(map(len, texts)) < SMALL
        numbered = self._by_name if small or any("\0" in text for text in texts) else self._by_bytes
        numbers = numbered(memory, texts)
        if numbers is None:
            return None
        before, after = len(self._frame.before), len(self._frame.after)
        ids, ends = memory.join(numbers)
        last = len(ids) - before
        return Line(ids[after:last], ends[numbers == BETWEEN_NUMBER][1:] - (before + after))

    def _by_name(self, memory: Memory, texts: Sequence[str]) -> Places | None:
        """The numbers of the texts' pieces, one BETWEEN around each."""
        names: list[str | None] = [BETWEEN]
        for text in texts:
            names += text.split(SPACE)
            names.append(BETWEEN)
        numbers = [memory.numbers.get(name, -1) for name in names]
        if -1 in numbers:
            with self._alone:
                if not self._learn(memory, names, len(names)):
                    return None
            numbers = [memory.numbers[name] for name in names]
        return np.array(numbers)

    def _by_bytes(self, memory: Memory, texts: Sequence[str]) -> Places | None:
        """The same for texts without 0 bytes."""
        data = b"".join(
            (MARK, b" ", (b" " + MARK + b" ").join([text.encode() for text in texts]), b" ", MARK, b" ", ROOM)
        )
        buffer = np.frombuffer(data, np.uint8)
        (ends,) = np.nonzero(buffer == ord(SPACE))
        starts = np.concatenate([[0], ends[:-1] + 1])
        lengths = ends - starts
        lanes = lanes_of(buffer, starts, lengths)
        with self._alone:
            numbers = memory.table.find(lanes)
            numbers[lengths > LONGEST] = -1
            (unknown,) = np.nonzero(numbers < 0)
            if unknown.size:
                where = zip(starts[unknown].tolist(), ends[unknown].tolist(), strict=True)
                names = [data[start:end].decode() for start, end in where]
                if not self._learn(memory, names, len(numbers)):
                    return None
                numbers[unknown] = [memory.numbers[name] for name in names]
                short = unknown[lengths[unknown] <= LONGEST]
                first = short[np.unique(numbers[short], return_index=True)[1]]
                memory.table.add(lanes[:, first], numbers[first])
        return numbers

    def _learn(self, memory: Memory, names: Sequence[str | None], pieces: int) -> bool:
        """Learn what is new of ``names``, of so many pieces in all; a little of it, and False, where that would not pay."""
        new = [name for name in dict.fromkeys(names) if name is not None and name not in memory.numbers]
        pays = len(new) <= max(FEW, NEW * pieces)
        if new:
            new = new if pays else new[: max(FEW, pieces // FEW)]
            memory.learn(new, line_of(self._library.encode_batch_fast(new, add_special_tokens=False)))
            if memory.characters > REMEMBERED and memory is self._memory:
                self._memory = self._empty()
        return pays

    def _empty(self) -> Memory:
        return Memory([*self._frame.after, *self._frame.before])


def pieces_of(library: tokenizers.Tokenizer, frame: Frame) -> Pieces | None:
    """None for a tokenizer that may look across a space."""
    separable = (
        isinstance(library.normalizer, normalizers.BertNormalizer)
        and isinstance(library.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        and isinstance(library.model, models.WordPiece)
        and all(
            SPACE not in token.content and not token.normalized
            for token in library.get_added_tokens_decoder().values()
        )
    )
    return Pieces(library, frame) if separable else None
