"""How transformers 5 reads a tokenizer.json, told by class, so that the ids are the same without transformers.

For most classes transformers keeps the file's vocabulary, merges and added tokens but builds normalizer, pre-tokenizer
and often the post-processor itself, from tokenizer_config.json (transformers/models/*/tokenization_*.py and
tokenization_utils_tokenizers.py, version 5.23). Classes not listed use the file as it is. `add_bos_token` and
`add_eos_token` have no effect where there is a tokenizer.json.
"""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors

from bei.errors import CheckpointError

CONFIG = "tokenizer_config.json"

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_REGISTERED = {
    "bert": "BertTokenizer",
    "camembert": "CamembertTokenizer",
    "distilbert": "BertTokenizer",
    "gemma3": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
    "gte": "XLMRobertaTokenizer",
    "jina_embeddings_v3": "XLMRobertaTokenizer",
    "mistral": "TokenizersBackend",
    "modernbert": "TokenizersBackend",
    "mpnet": "MPNetTokenizer",
    "nomic_bert": "BertTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}
"""transformers' class for a model_type; used where the checkpoint names none."""

_ALWAYS_REGISTERED = frozenset({"modernbert", "mistral", "qwen2"})
"""model_types whose checkpoints' own statement transformers does not believe."""

_QWEN2_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """tokenizer_config.json, with special_tokens_map.json where the former does not list added tokens itself."""

    values: Mapping[str, Any]

    def flag(self, key: str, default: bool) -> bool:
        """A boolean; an absent or null key gives ``default``."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise CheckpointError(f"{CONFIG}: {key} is {value!r}, need true or false.")
        return value

    def token(self, key: str, default: str | None = None) -> str | None:
        """A special token's text, stored as a string or as an object."""
        value = self.values.get(key)
        content = value.get("content") if isinstance(value, dict) else value
        return content if isinstance(content, str) else default


def class_of(settings: Settings, model_type: str, stated: str | None, byte_level: bool) -> str:
    """The class that transformers' AutoTokenizer ends up with; ``stated`` is config.json's tokenizer_class."""
    name = settings.values.get("tokenizer_class") or stated
    registered = _REGISTERED.get(model_type)
    if not isinstance(name, str) or model_type in _ALWAYS_REGISTERED:
        return registered or "TokenizersBackend"
    name = name.removesuffix("Fast")
    return "TokenizersBackend" if name == "LlamaTokenizer" and byte_level else name


def apply(tokenizer: Tokenizer, name: str, settings: Settings) -> None:
    """Rebuild what transformers' class ``name`` rebuilds, and add the tokens that tokenizer_config.json lists."""
    _, rebuild = _CLASSES.get(name, ({}, None))
    if rebuild is not None:
        rebuild(tokenizer, settings)
    _add_listed(tokenizer, settings)
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for text in special_tokens(name, settings).values():
        if text is not None and text not in known and tokenizer.token_to_id(text) is not None:
            tokenizer.add_tokens([AddedToken(text, special=True)])


def special_tokens(name: str, settings: Settings) -> Mapping[str, str | None]:
    """The text of each of `SPECIAL`: as the checkpoint says, else as transformers' class ``name`` has it."""
    defaults, _ = _CLASSES.get(name, ({}, None))
    return {key: settings.token(key, defaults.get(key)) for key in SPECIAL}


def is_known(name: str) -> bool:
    """Whether the rules of transformers' class ``name`` are known here."""
    return name in _CLASSES


def append_token(tokenizer: Tokenizer, token: str) -> None:
    """Put ``token`` after every text, behind what the post-processor adds already."""
    number = _id(tokenizer, token)
    template = processors.TemplateProcessing(
        single=f"$A:0 {token}:0", pair=f"$A:0 {token}:0 $B:1 {token}:1", special_tokens=[(token, number)]
    )
    before = tokenizer.post_processor
    tokenizer.post_processor = template if before is None else processors.Sequence([before, template])


def _add_listed(tokenizer: Tokenizer, settings: Settings) -> None:
    listed = settings.values.get("added_tokens_decoder") or {}
    try:
        tokens = sorted((int(number), AddedToken(**fields)) for number, fields in listed.items())
    except (AttributeError, TypeError, ValueError):
        raise CheckpointError(f"{CONFIG}: added_tokens_decoder is damaged. Download it again.") from None
    for number, token in tokens:
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != number:
            raise CheckpointError(
                f"{CONFIG}: {token.content!r} is listed with id {number}, but tokenizer.json gives it "
                f"{tokenizer.token_to_id(token.content)}. The two files belong to different tokenizers."
            )


def _id(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    if number is None:
        raise CheckpointError(
            f"tokenizer.json: the special token {token!r} is not in its vocabulary. Save the tokenizer again."
        )
    return int(number)


def _pair(tokenizer: Tokenizer, settings: Settings, key: str, default: str) -> tuple[str, int]:
    token = settings.token(key, default) or default
    return token, _id(tokenizer, token)


def _bert_text(tokenizer: Tokenizer, settings: Settings) -> None:
    strip = settings.values.get("strip_accents")
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.flag("tokenize_chinese_chars", True),
        strip_accents=None if strip is None else settings.flag("strip_accents", False),
        lowercase=settings.flag("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def _bert(tokenizer: Tokenizer, settings: Settings) -> None:
    _bert_text(tokenizer, settings)
    cls, sep = (
        _pair(tokenizer, settings, "cls_token", "[CLS]"),
        _pair(tokenizer, settings, "sep_token", "[SEP]"),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls[0]}:0 $A:0 {sep[0]}:0",
        pair=f"{cls[0]}:0 $A:0 {sep[0]}:0 $B:1 {sep[0]}:1",
        special_tokens=[cls, sep],
    )


def _mpnet(tokenizer: Tokenizer, settings: Settings) -> None:
    _bert_text(tokenizer, settings)
    cls, sep = _pair(tokenizer, settings, "cls_token", "<s>"), _pair(tokenizer, settings, "sep_token", "</s>")
    tokenizer.post_processor = processors.RobertaProcessing(sep, cls, True, False)


def _roberta(tokenizer: Tokenizer, settings: Settings) -> None:
    prefix = settings.flag("add_prefix_space", False)
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    cls, sep = _pair(tokenizer, settings, "cls_token", "<s>"), _pair(tokenizer, settings, "sep_token", "</s>")
    trim = settings.flag("trim_offsets", True)
    tokenizer.post_processor = processors.RobertaProcessing(sep, cls, trim, prefix)


def _xlm_roberta(tokenizer: Tokenizer, settings: Settings) -> None:
    charsmap = _charsmap(tokenizer)
    tokenizer.normalizer = None if charsmap is None else normalizers.Precompiled(charsmap)
    scheme = "always" if settings.flag("add_prefix_space", True) else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)]
    )
    bos, eos = _pair(tokenizer, settings, "bos_token", "<s>"), _pair(tokenizer, settings, "eos_token", "</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos[0], "$A", eos[0]],
        pair=[bos[0], "$A", eos[0], eos[0], "$B", eos[0]],
        special_tokens=[bos, eos],
    )


def _charsmap(tokenizer: Tokenizer) -> bytes | None:
    """The file's SentencePiece normalisation table, the one part of its normalizer that is kept."""
    if tokenizer.normalizer is None:
        return None
    stored = json.loads(tokenizer.normalizer.__getstate__())
    parts = stored["normalizers"] if stored.get("type") == "Sequence" else [stored]
    found = next((part["precompiled_charsmap"] for part in parts if part.get("type") == "Precompiled"), None)
    return base64.b64decode(found) if found else None


def _llama(tokenizer: Tokenizer, settings: Settings) -> None:
    scheme = "always" if settings.values.get("legacy", False) is True else "first"
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁",
        prepend_scheme=scheme if settings.flag("add_prefix_space", True) else "never",
        split=False,
    )


def _gemma(tokenizer: Tokenizer, settings: Settings) -> None:
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous", invert=False)


def _qwen2(tokenizer: Tokenizer, settings: Settings) -> None:
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(
                add_prefix_space=settings.flag("add_prefix_space", False), use_regex=False
            ),
        ]
    )


_SQUARE = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_ANGLED = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_LLAMA = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_GEMMA = {
    "unk_token": "<unk>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_QWEN2 = {"unk_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}

_Rebuild = Callable[[Tokenizer, Settings], None]

_CLASSES: dict[str, tuple[dict[str, str], _Rebuild | None]] = {
    "BertTokenizer": (_SQUARE, _bert),
    "DistilBertTokenizer": (_SQUARE, _bert),
    "MPNetTokenizer": ({**_ANGLED, "unk_token": "[UNK]"}, _mpnet),
    "RobertaTokenizer": (_ANGLED, _roberta),
    "XLMRobertaTokenizer": (_ANGLED, _xlm_roberta),
    "CamembertTokenizer": (_ANGLED, _xlm_roberta),
    "LlamaTokenizer": (_LLAMA, _llama),
    "GemmaTokenizer": (_GEMMA, _gemma),
    "Qwen2Tokenizer": (_QWEN2, _qwen2),
    "PreTrainedTokenizer": ({}, None),
    "TokenizersBackend": ({}, None),
}
"""Class → special tokens that it has by default, and what it rebuilds (None: nothing, the file is used as it is)."""
