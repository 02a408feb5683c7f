"""Rows equal what the `tokenizers` library itself would give, cut or not; bad inputs are named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.tiny import CLS, SEP, VOCAB, WORDS, library, write_bundle
from tokenizers import normalizers, processors

from bei.errors import InputError
from bei.manifest import TokenizerSpec
from bei.runtime.bundle import open_bundle
from bei.runtime.frame import Side
from bei.runtime.tokenizer import Input, Tokenizer, open_tokenizer

SPEC = TokenizerSpec(file="", pad_id=0, vocab_size=len(WORDS), golden=(), unk_id=1)
TINY = Tokenizer(library(), SPEC)
TEXT = st.lists(st.sampled_from(["hello", "world", "[SEP]", "zoo", "é", "漢", "\0", "  "]), max_size=9).map(
    " ".join
)


def with_processor(processor: processors.PostProcessor | None) -> Callable[[], tokenizers.Tokenizer]:
    def make() -> tokenizers.Tokenizer:
        made = library()
        made.post_processor = processor
        return made

    return make


ENDS = (("[SEP]", SEP), ("[CLS]", CLS))
PROCESSORS = {
    "template": library,
    "bert": with_processor(processors.BertProcessing(*ENDS)),
    "roberta": with_processor(processors.RobertaProcessing(*ENDS)),
    "byte-level": with_processor(processors.ByteLevel()),
    "none": with_processor(None),
    "eos only": with_processor(
        processors.Sequence(
            [
                processors.ByteLevel(),
                processors.TemplateProcessing(
                    single="$A [SEP]", pair="$A [SEP] $B [SEP]", special_tokens=[("[SEP]", SEP)]
                ),
            ]
        )
    ),
}


def whole_texts() -> tokenizers.Tokenizer:
    """One whose rules may reach across a space."""
    made = library()
    made.normalizer = normalizers.Lowercase()
    return made


TYPED = processors.TemplateProcessing(
    single="[CLS] $A:1 [SEP]:1",
    pair="[CLS] $A [SEP] $B:1 [SEP]:1",
    special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
)
PROCESSORS |= {"whole texts": whole_texts, "types other than 0": with_processor(TYPED)}
MADE = {name: (Tokenizer(make(), SPEC), make()) for name, make in PROCESSORS.items()}


@pytest.mark.parametrize("processor", PROCESSORS)
@given(
    inputs=st.lists(TEXT | st.tuples(TEXT, TEXT), min_size=1, max_size=4),
    max_length=st.integers(5, 12),
    side=st.sampled_from(["left", "right"]),
)
def test_rows_equal_the_librarys_own(
    processor: str, inputs: list[Input], max_length: int, side: Side
) -> None:
    ours, reference = MADE[processor]
    reference.no_padding()
    reference.no_truncation()
    whole = [len(encoding) for encoding in reference.encode_batch(inputs)]
    reference.enable_truncation(max_length, direction=side)
    want = reference.encode_batch(inputs)
    if any(not encoding.ids for encoding in want):
        with pytest.raises(InputError, match="gives no tokens"):
            ours.encode(inputs, max_length=max_length, side=side)
        return
    rows = ours.encode(inputs, max_length=max_length, side=side)
    assert [row.ids.tolist() for row in rows] == [encoding.ids for encoding in want]
    assert [row.types.tolist() for row in rows] == [encoding.type_ids for encoding in want]
    assert [len(row.ids) + row.dropped for row in rows] == whole


def test_truncation_can_be_refused() -> None:
    with pytest.raises(InputError, match="input 1: 6 tokens, but at most 4 fit"):
        TINY.encode(["a", "a b c d"], max_length=4, truncate=False)
    assert TINY.encode(["a b"], max_length=4, truncate=False)[0].dropped == 0


def test_a_limit_without_room_is_refused() -> None:
    with pytest.raises(InputError, match="max_length 3 leaves no room beside 3 special tokens"):
        TINY.encode([("a", "b")], max_length=3)


def test_prompts_go_before_texts_and_firsts_of_pairs_but_not_before_ids() -> None:
    rows = TINY.encode(["a", ("b", "a"), [7, 8]], prompt="query: ", max_length=16)
    query = [VOCAB["query"], VOCAB[":"]]
    assert rows[0].ids.tolist() == [CLS, *query, VOCAB["a"], SEP]
    assert rows[1].ids.tolist() == [CLS, *query, VOCAB["b"], SEP, VOCAB["a"], SEP]
    assert rows[2].ids.tolist() == [7, 8]
    assert [row.prompt_tokens for row in rows] == [3, 3, 0]


def test_token_ids_are_used_exactly() -> None:
    for given_ids in ([5, 0, 5], (5, 0, 5), np.array([5, 0, 5])):
        row = TINY.encode([given_ids], max_length=3)[0]
        assert row.ids.tolist() == [5, 0, 5]
        assert row.ids.dtype == row.types.dtype == np.int32
        assert row.dropped == 0
    assert TINY.encode([[5, 6, 7]], max_length=2)[0].ids.tolist() == [5, 6]
    assert TINY.encode([[5, 6, 7]], max_length=2, side="left")[0].ids.tolist() == [6, 7]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (3.5, "got float, need a text"),
        (None, "got NoneType"),
        (b"bytes", "got bytes"),
        ({"text": "a"}, "got dict"),
        ("a\ud800b", "lone surrogate U\\+D800 at character 1"),
        (("a", "\udfff"), "lone surrogate U\\+DFFF at character 0"),
        ([], "empty list of token ids"),
        ([1, "a"], "got str among the token ids"),
        (["a", "b", "c"], "got str among the token ids"),
        ([1, True], "got bool among the token ids"),
        ([1, 2.0], "got float among the token ids"),
        ([1, -1], "token id -1 is outside 0 … 62"),
        ([len(WORDS)], "token id 63 is outside 0 … 62"),
        ([10**30], "token id 10+ is outside 0 … 62"),
    ],
)
def test_bad_inputs_are_named(bad: Input, message: str) -> None:
    with pytest.raises(InputError, match=f"input 1: {message}"):
        TINY.encode(["fine", bad], max_length=16)
    with pytest.raises(InputError, match=f"input 41: {message}"):
        TINY.encode(["fine", bad], max_length=16, positions=[7, 41])


@pytest.mark.parametrize(
    "text", ["", " ", "\n\t  ", "\0", "\0\0a", "\u200b", "﷽", "a" * 1_000_000, "é " * 300_000]
)
def test_odd_texts_work(text: str) -> None:
    (row,) = TINY.encode([text], max_length=16)
    assert row.ids[0] == CLS
    assert row.ids[-1] == SEP
    assert len(row.ids) <= 16


def test_spans_point_into_the_text() -> None:
    text = "Hello, wörld zoo"
    ((spans,),) = TINY.encode_spans([text], max_length=16)
    assert spans.row.ids.tolist() == TINY.encode([text], max_length=16)[0].ids.tolist()
    words = [text[start:stop] for start, stop in spans.offsets]
    assert words == ["", "Hello", ",", "wörld", "z", "o", "o", ""]
    assert spans.continues.tolist()[1:-1] == [False, False, False, False, True, True]
    assert spans.special.tolist() == [True, *[False] * 6, True]


def test_spans_of_a_cut_text_fit_its_row() -> None:
    ((spans,),) = TINY.encode_spans(["a b c d e"], max_length=4)
    assert spans.row.dropped == 3
    assert spans.offsets.tolist() == [[0, 0], [0, 1], [2, 3], [0, 0]]


def test_a_bundles_tokenizer_ignores_the_files_own_padding(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(open_bundle(write_bundle(tmp_path / "b")))
    assert [len(row.ids) for row in tokenizer.encode(["a", "a b c d e f g h"], max_length=16)] == [3, 10]
