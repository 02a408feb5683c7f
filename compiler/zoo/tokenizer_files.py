"""tokenizer.json, tokenizer_config.json and special_tokens_map.json of a stand-in."""

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from bei.compiler.zoo.fact_files import TokenizerFacts, TokenizerUse
from bei.compiler.zoo.vocabulary import Vocabulary, byte_level


def write_tokenizer(
    folder: Path, facts: TokenizerFacts, use: TokenizerUse, vocabulary: Vocabulary, max_length: int
) -> None:
    """Write the three files. ``max_length``: model_max_length, which a stand-in of reduced width shrinks."""
    tokenizer = build_tokenizer(facts, vocabulary)
    if use.fixed_length is not None:
        pad = facts.roles["pad_token"]
        tokenizer.enable_truncation(use.fixed_length)
        tokenizer.enable_padding(length=use.fixed_length, pad_id=vocabulary.ids[pad], pad_token=pad)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        **facts.settings,
        **facts.roles,
        "model_max_length": max_length,
        "tokenizer_class": facts.name,
    }
    if facts.listed:
        config["added_tokens_decoder"] = _listed(tokenizer)
    _write(folder / "tokenizer_config.json", config)
    _write(folder / "special_tokens_map.json", facts.roles)


def build_tokenizer(facts: TokenizerFacts, vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer as tokenizer.json holds it."""
    tokenizer = Tokenizer(_model(facts, vocabulary))
    _add_text_rules(tokenizer, facts)
    tokenizer.add_tokens(_added_tokens(facts, vocabulary))
    assert tokenizer.get_vocab_size() == len(vocabulary.tokens), "two tokens share an id"
    processor = _post_processor(facts, vocabulary)
    if processor is not None:
        tokenizer.post_processor = processor
    return tokenizer


def _model(facts: TokenizerFacts, vocabulary: Vocabulary) -> Any:
    tokens = vocabulary.tokens[: vocabulary.base]
    ids = {token: i for i, token in enumerate(tokens)}
    match facts.kind:
        case "wordpiece":
            return models.WordPiece(ids, unk_token=facts.roles["unk_token"], max_input_chars_per_word=100)
        case "unigram":
            unk = ids[facts.roles["unk_token"]]
            return models.Unigram(list(zip(tokens, vocabulary.scores, strict=True)), unk_id=unk)
        case "byte-bpe":
            return models.BPE(ids, list(vocabulary.merges), ignore_merges=facts.ignore_merges)
        case _:
            unknown = facts.roles["unk_token"]
            return models.BPE(
                ids, list(vocabulary.merges), unk_token=unknown, fuse_unk=True, byte_fallback=True
            )


def _add_text_rules(tokenizer: Tokenizer, facts: TokenizerFacts) -> None:
    """Normalizer, pre-tokenizer and decoder."""
    match facts.kind:
        case "wordpiece":
            tokenizer.normalizer = normalizers.BertNormalizer(lowercase=facts.lowercase)
            tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            tokenizer.decoder = decoders.WordPiece()
        case "unigram":
            metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
            tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
        case "byte-bpe":
            if facts.nfc:
                tokenizer.normalizer = normalizers.NFC()
            prefix = bool(facts.settings.get("add_prefix_space"))
            tokenizer.pre_tokenizer = byte_level(facts.split, add_prefix_space=prefix)
            tokenizer.decoder = decoders.ByteLevel()
        case _:
            _add_sentencepiece_rules(tokenizer, facts)


def _add_sentencepiece_rules(tokenizer: Tokenizer, facts: TokenizerFacts) -> None:
    """Gemma splits at spaces; Llama's original prepends one and splits nowhere."""
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if facts.split == "spaces":
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        parts.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(parts)


def _added_tokens(facts: TokenizerFacts, vocabulary: Vocabulary) -> list[AddedToken]:
    """In the order of their ids: the special tokens, and what the model's own vocabulary does not have."""
    return [
        AddedToken(token, special=token in vocabulary.special, normalized=False, lstrip=token in facts.lstrip)
        for i, token in enumerate(vocabulary.tokens)
        if token in vocabulary.special or i >= vocabulary.base
    ]


def _post_processor(facts: TokenizerFacts, vocabulary: Vocabulary) -> Any:
    """What puts special tokens around a text or a pair."""
    if facts.name == "RobertaTokenizer":
        sep, cls = ((facts.roles[r], vocabulary.ids[facts.roles[r]]) for r in ("sep_token", "cls_token"))
        return processors.RobertaProcessing(sep, cls, True, bool(facts.settings.get("add_prefix_space")))
    template = None
    if facts.single is not None and facts.pair is not None:
        used = {token for token in facts.ids if re.search(rf"(^| ){re.escape(token)}(:| |$)", facts.pair)}
        special = [(token, vocabulary.ids[token]) for token in sorted(used)]
        template = processors.TemplateProcessing(single=facts.single, pair=facts.pair, special_tokens=special)
    if facts.split in ("qwen2", "llama3"):
        offsets = processors.ByteLevel(trim_offsets=False)
        return offsets if template is None else processors.Sequence([offsets, template])
    return template


def _listed(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {
        str(number): {flag: getattr(token, flag) for flag in flags}
        for number, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
