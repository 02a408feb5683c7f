"""transformers and sentence-transformers read the stand-ins as they read the real checkpoints."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    logging,
)

from bei.compiler.zoo.fact_files import facts_of, load_facts
from tests.compiler.zoo.conftest import StandIn

NATIVE = [repo for repo, facts in load_facts().items() if facts.config["model_type"] in CONFIG_MAPPING]
REMOTE_BUT_NATIVE = (
    ("Snowflake/snowflake-arctic-embed-m-v2.0", None),
    ("Alibaba-NLP/gte-Qwen2-1.5B-instruct", None),
    ("voyageai/voyage-4-nano", "refs/pr/5"),
    ("nomic-ai/nomic-embed-text-v1.5", "e9b6763023c676ca8431644204f50c2b100d9aab"),
)
"""Checkpoints with code of their own that transformers' class reads all the same."""

LOADABLE = [(repo, None) for repo in NATIVE if "auto_map" not in facts_of(repo).config]

TEXTS = (
    "The harbour is quiet, 123 apples!",
    "¿Dónde está? Größe 安静 🙂\n\n  def f(x): return x",
    "",
    "  x  ",
)

SENTENCE = "The harbour is quiet before dawn, and the first boats leave while the lamps are still burning."


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    yield
    logging.set_verbosity(before)


@pytest.mark.parametrize("repo", NATIVE)
def test_config_loads(repo: str, stand_in: StandIn) -> None:
    folder, plan = stand_in(repo)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    assert config.model_type == plan.config["model_type"]
    assert config.vocab_size == plan.config["vocab_size"]


@pytest.mark.parametrize("repo", load_facts())
def test_tokenizer_agrees_with_its_file(repo: str, stand_in: StandIn) -> None:
    folder, plan = stand_in(repo)
    tokenizer = _tokenizer(folder)
    stored = Tokenizer.from_file(str(folder / "tokenizer.json"))
    stored.no_truncation()
    stored.no_padding()
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == stored.encode(text).ids
    pair = tokenizer(TEXTS[0], TEXTS[1])
    assert pair["input_ids"] == stored.encode(TEXTS[0], TEXTS[1]).ids
    if "token_type_ids" in pair:
        assert pair["token_type_ids"] == stored.encode(TEXTS[0], TEXTS[1]).type_ids
    assert len(tokenizer) == len(plan.vocabulary.tokens) <= plan.config["vocab_size"]
    roles = json.loads((folder / "special_tokens_map.json").read_text())
    assert {role: getattr(tokenizer, role) for role in roles} == roles


@pytest.mark.parametrize(("repo", "revision"), [*LOADABLE, *REMOTE_BUT_NATIVE])
def test_every_weight_of_the_model_is_there(repo: str, revision: str | None, stand_in: StandIn) -> None:
    """A pooler that no pooling reads may be missing, as it is in the real files; sizes that differ would raise."""
    folder, _ = stand_in(repo, revision)
    _, info = AutoModel.from_pretrained(folder, trust_remote_code=False, output_loading_info=True)
    assert {name for name in info["missing_keys"] if not name.startswith("pooler.")} == set()
    heads = ("classifier.", "lm_head.", "head.", "decoder.")
    assert all(name.startswith(heads) for name in info["unexpected_keys"])


@pytest.mark.parametrize(
    "repo",
    [
        "BAAI/bge-small-en-v1.5",
        "sentence-transformers/all-mpnet-base-v2",
        "BAAI/bge-m3",
        "Snowflake/snowflake-arctic-embed-m-v2.0",
        "answerdotai/ModernBERT-base",
        "google/embeddinggemma-300m",
        "Qwen/Qwen3-Embedding-0.6B",
        "Salesforce/SFR-Embedding-2_R",
    ],
)
def test_attention_is_far_from_uniform_in_every_layer(repo: str, stand_in: StandIn) -> None:
    folder, _ = stand_in(repo)
    model = AutoModel.from_pretrained(
        folder, trust_remote_code=False, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.tensor([_tokenizer(folder)(SENTENCE)["input_ids"]])
    with torch.inference_mode():
        attentions = model(input_ids=ids, output_attentions=True).attentions
    for attention in attentions:
        visible = (attention > 0).sum(-1).clamp(min=2)
        entropy = -(attention * attention.clamp(min=1e-12).log()).sum(-1) / visible.log()
        assert entropy[visible > 4].mean() < 0.8


@pytest.mark.parametrize(
    "repo", ["BAAI/bge-small-en-v1.5", "google/embeddinggemma-300m", "Qwen/Qwen3-Embedding-0.6B"]
)
def test_sentence_transformers_loads_the_whole(repo: str, stand_in: StandIn) -> None:
    folder, plan = stand_in(repo)
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    assert plan.facts.sentence is not None
    vectors = np.asarray(model.encode([SENTENCE, TEXTS[0]], convert_to_numpy=True, show_progress_bar=False))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-2)
    assert vectors[0] @ vectors[1] < 0.95
    assert {name: text for name, text in model.prompts.items() if text} == {
        name: text for name, text in (plan.facts.sentence.prompts or {}).items() if text
    }


def _tokenizer(folder: Path) -> Any:
    """Where transformers has no such model_type it cannot say which class; the tokenizer's own does not need it."""
    known = json.loads((folder / "config.json").read_text())["model_type"] in CONFIG_MAPPING
    reader: Any = AutoTokenizer if known else PreTrainedTokenizerFast
    return reader.from_pretrained(folder, trust_remote_code=False)
