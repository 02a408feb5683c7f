"""The built-in texts: deterministic, well mixed, and as long as the model allows."""

import unicodedata
from itertools import pairwise

import pytest

from bei.compiler.parity.texts import Sample, builtin, digest, require_fit
from bei.errors import ParityError
from bei.manifest import Task

TASKS: tuple[Task, ...] = ("embed", "embed-tokens", "classify", "rerank", "token-classify")


@pytest.mark.parametrize("task", TASKS)
def test_the_same_every_time_and_fit_for_the_task(task: Task) -> None:
    samples = builtin(task, 256)
    assert builtin(task, 256) == samples
    assert digest(builtin(task, 256)) == digest(samples)
    require_fit(samples, task, "built-in")
    assert 150 < len(samples) < 250


def test_the_set_is_fixed() -> None:
    """Certificates name the texts by this digest: a change of the set must be meant."""
    assert digest(builtin("embed", 256)) == "28cc3e7827d18ad8785f01777ecb9b60b103f3ab6c6c180ce7a090fab7c948b5"


def test_digest_sees_any_change() -> None:
    samples = builtin("embed", 64)
    assert digest(samples) != digest(builtin("embed", 65))
    assert digest(samples) != digest(samples[::-1])
    assert digest([Sample(kind="a", text="ab")]) != digest([Sample(kind="a", text="a", pair="b")])


@pytest.mark.parametrize("max_length", [8, 256, 8192])
def test_lengths_run_from_one_word_past_the_longest_input(max_length: int) -> None:
    words = [len(sample.text.split()) for sample in builtin("embed", max_length) if sample.kind == "length"]
    assert words == sorted(set(words))
    assert words[0] == 1
    assert max_length - 2 in words  # full with the two special tokens of most models
    assert words[-1] > max_length
    longest_step = max(b / a for a, b in pairwise(words))
    assert longest_step <= 2


def test_full_is_larger_and_contains_every_kind() -> None:
    small, full = builtin("embed", 256), builtin("embed", 256, full=True)
    assert len(full) > 2.5 * len(small)
    assert {sample.kind for sample in small} < {sample.kind for sample in full}


def test_many_scripts() -> None:
    text = "".join(sample.text for sample in builtin("embed", 16))
    scripts = {unicodedata.name(c, "").split(" ")[0] for c in text if c.isalpha()}
    wanted = "LATIN GREEK CYRILLIC HEBREW ARABIC DEVANAGARI BENGALI TAMIL TELUGU MALAYALAM GURMUKHI THAI LAO KHMER "
    wanted += "MYANMAR GEORGIAN ARMENIAN ETHIOPIC CJK HIRAGANA KATAKANA HANGUL"
    assert scripts >= set(wanted.split())


def test_special_token_look_alikes_and_emoji_are_there() -> None:
    text = "".join(sample.text for sample in builtin("embed", 16))
    for wanted in (
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "<s>",
        "</s>",
        "<|endoftext|>",
        "👨\u200d👩",
        "\u00a0",
        "\t",
        "```"[:1],
    ):
        assert wanted in text


def test_no_text_that_a_runtime_may_refuse() -> None:
    for task in TASKS:
        for sample in builtin(task, 64, full=True):
            for text in (sample.text, sample.pair or "x"):
                assert text.strip()
                assert "\0" not in text
                text.encode()  # no lone surrogates


def test_every_prompt_is_tried() -> None:
    samples = builtin("embed", 64, prompts=("query", "document"))
    assert {sample.prompt for sample in samples} == {None, "query", "document"}


def test_rerank_groups_can_be_ranked() -> None:
    samples = builtin("rerank", 64)
    sizes: dict[int | None, set[str]] = {}
    for sample in samples:
        if sample.group is not None:
            sizes.setdefault(sample.group, set()).add(sample.text)
    assert len(sizes) >= 20
    assert all(len(queries) == 1 for queries in sizes.values())
    assert len([sample for sample in samples if sample.group == 0]) >= 5


@pytest.mark.parametrize(
    ("task", "samples", "message"),
    [
        ("embed", (), "no texts"),
        ("rerank", (Sample(kind="user", text="a"),), "text 1 is not a pair"),
        ("embed", (Sample(kind="u", text="a"), Sample(kind="u", text="a", pair="b")), "text 2 is a pair"),
    ],
)
def test_samples_that_do_not_fit(task: Task, samples: tuple[Sample, ...], message: str) -> None:
    with pytest.raises(ParityError, match=message):
        require_fit(samples, task, "mine.txt")
