"""The tokenizers of stand-ins: places of tokens, coverage, and the same vocabulary every time."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from bei.compiler.zoo.fact_files import tokenizer_facts
from bei.compiler.zoo.tokenizer_files import build_tokenizer
from bei.compiler.zoo.vocabulary import vocabulary

every = pytest.mark.parametrize("name", tokenizer_facts())

ONE_OF_A_KIND = tuple({(f.kind, f.split, f.added): name for name, f in tokenizer_facts().items()}.values())

DIGESTS = """
import hashlib, json
from bei.compiler.zoo.fact_files import tokenizer_facts
from bei.compiler.zoo.tokenizer_files import build_tokenizer
from bei.compiler.zoo.vocabulary import vocabulary
built = {n: build_tokenizer(f, vocabulary(f, full=False)).to_str() for n, f in tokenizer_facts().items()}
print(json.dumps({n: hashlib.sha256(text.encode()).hexdigest() for n, text in built.items()}))
"""


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_at_full_size_every_special_token_is_in_its_real_place(name: str) -> None:
    facts = tokenizer_facts()[name]
    tokens = vocabulary(facts, full=True)
    assert len(tokens.tokens) == facts.size == len(tokens.ids)
    assert {token: tokens.ids[token] for token in facts.ids} == facts.ids
    small, full = (build_tokenizer(facts, found) for found in (vocabulary(facts, full=False), tokens))
    text = "Two trains left the station at the same time 🙂"
    assert small.encode(text).tokens == full.encode(text).tokens


@every
def test_a_small_vocabulary_keeps_the_order_of_special_tokens(name: str) -> None:
    facts = tokenizer_facts()[name]
    ids = vocabulary(facts, full=False).ids
    assert sorted(facts.ids, key=facts.ids.__getitem__) == sorted(facts.ids, key=ids.__getitem__)
    assert len(ids) < 2000


@every
def test_text_is_split_into_pieces_and_back(name: str) -> None:
    facts = tokenizer_facts()[name]
    tokenizer = build_tokenizer(facts, vocabulary(facts, full=False))
    text = "the lamps are still burning, 21.5 and Größe 港口很安静"
    pieces = tokenizer.encode(text, add_special_tokens=False)
    unknown = tokenizer.token_to_id(facts.roles.get("unk_token", ""))
    assert 8 < len(pieces.ids) < 3 * len(text)
    assert unknown is None or unknown not in pieces.ids
    if facts.kind in ("byte-bpe", "sentencepiece-bpe"):
        assert tokenizer.decode(pieces.ids).strip() == text


@every
def test_templates_put_special_tokens_around(name: str) -> None:
    facts = tokenizer_facts()[name]
    tokenizer = build_tokenizer(facts, vocabulary(facts, full=False))
    for template, encoded in (
        (facts.single, tokenizer.encode("a")),
        (facts.pair, tokenizer.encode("a", "b")),
    ):
        wanted = [part.split(":")[0] for part in (template or "").split() if not part.startswith("$")]
        assert [token for token in encoded.tokens if token in facts.ids] == wanted


def test_another_process_trains_the_same_vocabularies() -> None:
    """Hash seeds and threads differ between processes; vocabularies must not."""
    found = subprocess.run(
        [sys.executable, "-c", DIGESTS],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "RAYON_NUM_THREADS": "3", "PYTHONHASHSEED": "7"},
    )
    ours = {
        name: hashlib.sha256(
            build_tokenizer(facts, vocabulary(facts, full=False)).to_str().encode()
        ).hexdigest()
        for name, facts in tokenizer_facts().items()
    }
    assert json.loads(found.stdout) == ours
