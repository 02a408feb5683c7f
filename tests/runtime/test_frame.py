"""The special tokens around a text, read off a tokenizer; and what a text loses between them."""

import numpy as np
import pytest
import tokenizers
from tests.runtime.tiny import CLS, SEP, library
from tokenizers import models, processors

from bei.errors import InputError
from bei.runtime.frame import Frame, Side, frame_of


def tiny(single: str | None) -> tokenizers.Tokenizer:
    made = library()
    made.no_truncation()
    made.no_padding()
    template = single and processors.TemplateProcessing(
        single=single, pair="$A $B", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    made.post_processor = template or None
    return made


@pytest.mark.parametrize(
    ("single", "frame"),
    [
        ("[CLS] $A [SEP]", Frame((CLS,), (SEP,))),
        ("$A [SEP]", Frame((), (SEP,))),
        ("[CLS] [SEP] $A", Frame((CLS, SEP), ())),
        (None, Frame((), ())),
        ("[CLS] $A:1 [SEP]", None),
        ("[CLS] $A [SEP]:1", None),
    ],
)
def test_it_is_read_off_the_tokenizer(single: str | None, frame: Frame | None) -> None:
    assert frame_of(tiny(single)) == frame


def test_a_tokenizer_that_knows_no_letters_has_none() -> None:
    assert frame_of(tokenizers.Tokenizer(models.WordLevel({"b": 0}, unk_token="[UNK]"))) is None


@pytest.mark.parametrize(
    ("side", "max_length", "kept"),
    [("right", 6, [7, 1, 2, 3, 8, 9]), ("left", 6, [7, 3, 4, 5, 8, 9]), ("right", 4, [7, 1, 8, 9])],
)
def test_a_text_is_cut_within_it(side: Side, max_length: int, kept: list[int]) -> None:
    ids = np.array([7, 1, 2, 3, 4, 5, 8, 9], np.int32)
    assert Frame((7,), (8, 9)).cut(ids, max_length, side).tolist() == kept


def test_a_limit_that_it_fills_is_refused() -> None:
    with pytest.raises(InputError, match="max_length 3 leaves no room beside 3 special tokens"):
        Frame((7,), (8, 9)).cut(np.arange(5, dtype=np.int32), 3, "right")
