"""The tokenizer as transformers, sentence-transformers and fastembed read it: two files that give the bundle's ids in every
version of them.

A checkpoint's own tokenizer class may rebuild what its tokenizer.json says, and each version of transformers does so
in its own way (Gemma's adds an end token or not). The generic class takes tokenizer.json as it is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bei.compiler.export.folder import pad_token, portable_tokenizer, source_json, write_json
from bei.runtime.bundle import Bundle

SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "cls_token",
    "mask_token",
    "additional_special_tokens",
)


def write_tokenizer(bundle: Bundle, folder: Path, inputs: Sequence[str]) -> None:
    """tokenizer.json and tokenizer_config.json for a graph that takes ``inputs``. Raises BundleError."""
    tokenizer = portable_tokenizer(bundle)
    tokenizer.save(str(folder / "tokenizer.json"))
    said = source_json(bundle, "tokenizer_config.json") or {}
    names = {**(source_json(bundle, "special_tokens_map.json") or {}), **said}
    special: dict[str, Any] = {name: names[name] for name in SPECIAL if names.get(name)}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": [name for name in inputs if name != "prompt_length"],
        "model_max_length": bundle.manifest.limits.max_length,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        **special,
        "pad_token": pad_token(tokenizer, bundle.manifest.tokenizer),
    }
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", {**special, "pad_token": settings["pad_token"]})
