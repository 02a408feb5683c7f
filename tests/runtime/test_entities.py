"""Entities against transformers' own pipeline, on tokenizers of every kind and texts of every kind."""

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.compiler.checkpoint.tokenizers_of import FAMILIES
from tokenizers import Tokenizer as Library
from tokenizers import processors
from transformers import (
    BertConfig,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
    TokenClassificationPipeline,
)
from transformers.pipelines.token_classification import AggregationStrategy

from bei.errors import InputError
from bei.manifest import TokenizerSpec
from bei.runtime.entities import STRATEGIES, Entity, Strategy, check_strategy, entities, every_token
from bei.runtime.executor import Output
from bei.runtime.tokenizer import Spans, Tokenizer

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC", "B-X-Y", "I-X-Y")
MAX_LENGTH = 12
KINDS = ("wordpiece", "mpnet", "roberta", "roberta with prefix space", "xlm-roberta", "mistral")
WORDS = st.sampled_from(
    ["Hello", "wörld", "über-naïve", "Ångström", "Привет", "中文分词", "e\u0301", "😀", "👩‍👩‍👧", "brown",
     "foxjumps", "1234567890", "def", "f(x):", "...", "x@y.zz", "[UNK]", "<unk>", "</s>", "İ", "ﬁ", "\u200b"]
)  # fmt: skip
GAPS = st.sampled_from([" ", "  ", "", "\n", "\t", "\u00a0", ", ", "-"])
TEXTS = st.lists(st.tuples(WORDS, GAPS), max_size=12).map(lambda parts: "".join(w + g for w, g in parts))


def _library(kind: str) -> Library:
    family = FAMILIES[kind.removesuffix(" with prefix space")]()
    if kind.endswith("with prefix space"):
        family.tokenizer.pre_tokenizer.add_prefix_space = True
        family.tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, True)
    return family.tokenizer


@cache
def sides(kind: str) -> tuple[Tokenizer, Any]:
    """The runtime's tokenizer, and a pipeline with a small random model."""
    library = _library(kind)
    unk = "[UNK]" if library.token_to_id("[UNK]") is not None else "<unk>"
    pad = library.token_to_id("[PAD]") or library.token_to_id("<pad>") or 0
    tokenizer_class: Any = PreTrainedTokenizerFast
    theirs = tokenizer_class(
        tokenizer_object=Library.from_str(library.to_str()),
        unk_token=unk,
        pad_token=library.id_to_token(pad),
        model_max_length=MAX_LENGTH,
    )
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=library.get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=1.0,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )
    pipeline_class: Any = TokenClassificationPipeline
    model: Any = BertForTokenClassification(config)
    pipeline = pipeline_class(model=model.eval(), tokenizer=theirs, device=-1)
    spec = TokenizerSpec(file="", pad_id=pad, vocab_size=99999, golden=(), unk_id=library.token_to_id(unk))
    return Tokenizer(library, spec), pipeline


def scores(pipeline: Any, windows: list[Spans]) -> list[Output]:
    with torch.inference_mode():
        ids = [torch.from_numpy(spans.row.ids[None].astype(np.int64)) for spans in windows]
        return [pipeline.model(input_ids=one).logits[0].numpy() for one in ids]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tokenizer does not support real words")
        yield


def through_pipeline(pipeline: Any, text: str, stride: int | None) -> list[Any]:
    """The pipeline's steps up to the logits, which all strategies share."""
    options = {} if stride is None else {"stride": stride, "aggregation_strategy": "simple"}
    before, _, _ = pipeline._sanitize_parameters(**options)
    return [pipeline.forward(chunk) for chunk in pipeline.preprocess(text, **before)]


@pytest.mark.parametrize("stride", [None, 0, 3])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(text=TEXTS)
def test_the_same_entities_as_the_pipeline(kind: str, stride: int | None, text: str) -> None:
    tokenizer, pipeline = sides(kind)
    (windows,) = tokenizer.encode_spans([text], max_length=MAX_LENGTH, stride=stride)
    chunks = through_pipeline(pipeline, text, stride)
    logits = scores(pipeline, windows)
    for strategy in STRATEGIES if stride is None else STRATEGIES[1:]:
        for ignore in (("O",), ()):
            theirs = pipeline.postprocess(chunks, AggregationStrategy(strategy), list(ignore))
            assert_equal(entities(text, windows, logits, LABELS, strategy, ignore=ignore), theirs, text)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_entities_as_the_pipeline_called_as_users_do(kind: str, strategy: Strategy) -> None:
    tokenizer, pipeline = sides(kind)
    text = "Hello Ångström, 中文 👩‍👩‍👧 <unk> the quick brown fox jumps over the lazy dog"
    stride = None if strategy == "none" else 2
    options = {} if stride is None else {"stride": stride}
    (windows,) = tokenizer.encode_spans([text], max_length=MAX_LENGTH, stride=stride)
    ours = entities(text, windows, scores(pipeline, windows), LABELS, strategy)
    assert ours
    assert_equal(ours, pipeline(text, aggregation_strategy=strategy, **options), text)


def assert_equal(ours: list[Entity], theirs: list[Any], text: str) -> None:
    want = [(str(e.get("entity_group", e.get("entity"))), e["start"], e["end"]) for e in theirs]
    assert [(entity.label, entity.start, entity.end) for entity in ours] == want
    np.testing.assert_allclose([e.score for e in ours], [e["score"] for e in theirs], rtol=1e-4)
    assert [entity.text for entity in ours] == [text[start:end] for _, start, end in want]


def test_every_token_is_listed_special_ones_too() -> None:
    tokenizer, pipeline = sides("wordpiece")
    text = "Hello Wörld 中"
    (windows,) = tokenizer.encode_spans([text], max_length=MAX_LENGTH)
    logits = scores(pipeline, windows)
    found = every_token(text, windows, logits, LABELS)
    assert [entity.token_id for entity in found] == windows[0].row.ids.tolist()
    assert [entity.label for entity in found] == [LABELS[i] for i in logits[0].argmax(axis=1)]
    assert (found[0].start, found[0].end, found[0].text, found[1].text) == (0, 0, "", text[: found[1].end])
    np.testing.assert_array_equal(np.stack([entity.logits for entity in found]), logits[0])


def test_an_entitys_logits_are_the_mean_of_its_tokens() -> None:
    tokenizer, _ = sides("wordpiece")
    (windows,) = tokenizer.encode_spans(["Hello, world"], max_length=MAX_LENGTH)
    n = len(windows[0].row.ids)
    logits = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
    logits[:, 1] += 20
    (entity,) = entities("Hello, world", windows, [logits], ("O", "PER"))
    assert (entity.label, entity.start, entity.end, entity.token_id) == ("PER", 0, 12, 0)
    np.testing.assert_allclose(entity.logits, logits[1 : n - 1].mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("stride", [-1, MAX_LENGTH - 2, 10**9])
def test_a_stride_without_a_way_forward_is_refused(stride: int) -> None:
    tokenizer, _ = sides("wordpiece")
    with pytest.raises(InputError, match=rf"stride: got {stride}, need 0 … {MAX_LENGTH - 3} "):
        tokenizer.encode_spans(["a"], max_length=MAX_LENGTH, stride=stride)


def test_windows_of_any_size_do_not_disturb_each_other() -> None:
    tokenizer, _ = sides("roberta")
    text = "the quick brown fox jumps over the lazy dog " * 4
    whole = tokenizer.encode([text], max_length=1000)[0].ids.tolist()
    for size, stride in ((8, 2), (20, 0), (5, 1)):
        (windows,) = tokenizer.encode_spans([text], max_length=size, stride=stride)
        rows = [spans.row.ids.tolist() for spans in windows]
        assert max(map(len, rows)) == size
        inner = [row[1:-1] for row in rows]
        joined = inner[0] + [token for row in inner[1:] for token in row[stride:]]
        assert [whole[0], *joined, whole[-1]] == whole


@pytest.mark.parametrize(
    ("strategy", "stride", "message"),
    [("best", None, "got 'best', need one of none, simple, first, average, max"), ("none", 4, "no stride")],
)
def test_strategies_that_cannot_be_are_refused(strategy: Strategy, stride: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_strategy(strategy, stride)
