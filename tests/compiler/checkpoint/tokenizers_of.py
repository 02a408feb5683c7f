"""Small tokenizers of every family, trained on the spot: tokenizer.json and tokenizer_config.json as the Hub has them."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "Hello, world! The quick brown fox jumps over the lazy dog 1234567890 times.",
    "naïve café Ångström. Привет, мир! 中文分词测试。 def f(x): return x + 1",
    "leading and inner spaces, hello world hello world, camelCase snake_case",
] * 4


@dataclass(frozen=True, kw_only=True)
class Family:
    """``config`` is tokenizer_config.json, ``model`` what config.json says."""

    tokenizer: Tokenizer
    config: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)


def _template(single: str, pair: str, tokenizer: Tokenizer, tokens: list[str]) -> Any:
    return processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, tokenizer.token_to_id(token)) for token in tokens]
    )


def wordpiece(cls: str = "[CLS]", sep: str = "[SEP]") -> Family:
    """BERT's, trained on lower-cased text; the file says so, tokenizer_config.json may say otherwise."""
    specials = ["[PAD]", "[UNK]", cls, sep, "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = _template(
        f"{cls} $A {sep}", f"{cls} $A {sep} $B:1 {sep}:1", tokenizer, [cls, sep]
    )
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "cls_token": cls, "sep_token": sep}
    return Family(tokenizer=tokenizer, config=config, model={"model_type": "bert"})


def mpnet() -> Family:
    """WordPiece with RoBERTa's special tokens."""
    specials = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    config = {
        "tokenizer_class": "MPNetTokenizer",
        "do_lower_case": True,
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    }
    return Family(tokenizer=tokenizer, config=config, model={"model_type": "mpnet"})


def roberta() -> Family:
    """Byte-level BPE."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    config = {"tokenizer_class": "RobertaTokenizer", "pad_token": "<pad>", "mask_token": "<mask>"}
    return Family(tokenizer=tokenizer, config=config, model={"model_type": "roberta"})


def modernbert() -> Family:
    """Byte-level BPE whose file is used as it is."""
    family = roberta()
    family.tokenizer.normalizer = normalizers.NFC()
    family.tokenizer.post_processor = _template(
        "<s> $A </s>", "<s> $A </s> $B </s>", family.tokenizer, ["<s>", "</s>"]
    )
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "mask_token": "<mask>"}
    return Family(tokenizer=family.tokenizer, config=config, model={"model_type": "modernbert"})


def xlm_roberta() -> Family:
    """SentencePiece Unigram."""
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=specials, unk_token="<unk>", show_progress=False, shrinking_factor=0.75
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokens = ["<s>", "</s>"]
    tokenizer.post_processor = _template("<s> $A </s>", "<s> $A </s> </s> $B </s>", tokenizer, tokens)
    config = {"tokenizer_class": "XLMRobertaTokenizer", "pad_token": "<pad>", "mask_token": "<mask>"}
    return Family(tokenizer=tokenizer, config=config, model={"model_type": "xlm-roberta"})


def charsmap() -> bytes:
    """A SentencePiece normalisation table that turns z into y and nothing else.

    A double array (https://github.com/s-yata/darts-clone) of 1024 units: the root leads to unit 256 ^ "z", that one to
    a leaf whose value 0 is where "y" lies among the replacements.
    """
    units, z = [0] * 1024, ord("z")
    units[0] = 256 << 10
    units[256 ^ z] = z | 1 << 8 | 512 << 10
    units[256 ^ z ^ 512] = 1 << 31
    return struct.pack("<I1024I", 4 * len(units), *units) + b"y\0"


def xlm_roberta_precompiled() -> Family:
    """With a normalisation table in the file, the one part of its normalizer that transformers keeps."""
    family = xlm_roberta()
    table = normalizers.Precompiled(charsmap())
    family.tokenizer.normalizer = normalizers.Sequence([table, normalizers.Replace("o", "a")])
    return family


def _sentencepiece_bpe(specials: list[str]) -> Tokenizer:
    """BPE over ▁ with byte fallback, as Llama 2, Mistral and Gemma have it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=tokens, show_progress=False, max_token_length=8
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    plain = Tokenizer(tokenizer.model)  # the byte tokens are vocabulary, not added tokens
    plain.add_special_tokens([token for token in specials if token != "<mask>"])
    return plain


def llama(*, eos_in_file: bool = False) -> Family:
    """Llama 2's: the file prepends ▁ in its normalizer; tokenizer_config.json asks for EOS."""
    tokenizer = _sentencepiece_bpe(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    eos, second = (" </s>:0", " </s>:1") if eos_in_file else ("", "")
    pair = f"<s>:0 $A:0{eos} <s>:1 $B:1{second}"
    tokenizer.post_processor = _template(f"<s>:0 $A:0{eos}", pair, tokenizer, ["<s>", "</s>"])
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": True,
        "legacy": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": None,
        "model_max_length": 1000000000000000019884624838656,
    }
    return Family(tokenizer=tokenizer, config=config, model={"model_type": "llama"})


def mistral() -> Family:
    """Llama's tokenizer under another model_type, for which the file is used as it is."""
    family = llama(eos_in_file=True)
    return Family(tokenizer=family.tokenizer, config=family.config, model={"model_type": "mistral"})


def gemma() -> Family:
    """SentencePiece BPE without a prefix space; `<mask>` is in the vocabulary but no added token of the file."""
    tokenizer = _sentencepiece_bpe(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokens = ["<bos>", "<eos>"]
    tokenizer.post_processor = _template(
        "<bos> $A <eos>", "<bos> $A <eos> <bos>:1 $B:1 <eos>:1", tokenizer, tokens
    )
    config = {
        "tokenizer_class": "GemmaTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": True,
        "pad_token": "<pad>",
    }
    return Family(tokenizer=tokenizer, config=config, model={"model_type": "gemma3_text"})


def qwen2(*, eos_in_file: bool = False) -> Family:
    """Byte-level BPE; Qwen3-Embedding's file appends EOS, gte-Qwen2's leaves that to its own code."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    level = processors.ByteLevel(trim_offsets=False)
    tokenizer.post_processor = level
    if eos_in_file:
        end = "<|endoftext|>"
        template = _template(f"$A {end}", f"$A {end} $B {end}", tokenizer, [end])
        tokenizer.post_processor = processors.Sequence([level, template])
    listed = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    }
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": listed,
        "eos_token": "<|im_end|>" if eos_in_file else "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    return Family(
        tokenizer=tokenizer, config=config, model={"model_type": "qwen3" if eos_in_file else "qwen2"}
    )


FAMILIES: dict[str, Callable[[], Family]] = {
    "wordpiece": wordpiece,
    "mpnet": mpnet,
    "roberta": roberta,
    "modernbert": modernbert,
    "xlm-roberta": xlm_roberta,
    "xlm-roberta precompiled": xlm_roberta_precompiled,
    "llama": llama,
    "llama with eos": lambda: llama(eos_in_file=True),
    "mistral": mistral,
    "gemma": gemma,
    "qwen2": qwen2,
    "qwen3": lambda: qwen2(eos_in_file=True),
}
