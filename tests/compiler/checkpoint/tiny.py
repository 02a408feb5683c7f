"""The smallest checkpoints that are complete: two layers of width 8, and a WordPiece tokenizer of a few words."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from bei.adapters.base import HfConfig, View
from bei.adapters.bert import BERT

WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "b",
    "c",
    "##a",
    "##b",
    "hello",
    "world",
    ",",
    ".",
    "!",
)

CONFIG: dict[str, Any] = {
    "architectures": ["BertModel"],
    "hidden_act": "gelu",
    "hidden_size": 8,
    "intermediate_size": 16,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 32,
    "model_type": "bert",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": len(WORDS),
}

Tensors = dict[str, npt.NDArray[Any]]


def tensors(config: Mapping[str, Any] = CONFIG, prefix: str = "") -> Tensors:
    """Random BERT weights under the names of the Hub, in float32."""
    rng = np.random.default_rng(0)
    dim, ffn = config["hidden_size"], config["intermediate_size"]
    tables = {
        "word": config["vocab_size"],
        "position": config["max_position_embeddings"],
        "token_type": config["type_vocab_size"],
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name, source in BERT.weights(BERT.config(HfConfig(config))):
        assert isinstance(source, View)
        wide = (ffn if ".up." in name else dim, ffn if ".down." in name else dim)
        table = next((rows for kind, rows in tables.items() if f".{kind}_embeddings." in source.name), None)
        if table is not None:
            shapes[source.name] = (table, dim)
        elif "LayerNorm" in source.name:
            shapes[source.name] = (dim,)
        else:
            shapes[source.name] = wide[:1] if name.endswith(".bias") else wide
    return {prefix + name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def tokenizer_json() -> str:
    """A lower-casing WordPiece tokenizer.json as BERT's, with the truncation and padding that some files carry."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(WORDS[:5]))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4, pad_token="[PAD]", pad_id=0)
    return str(tokenizer.to_str())


TOKENIZER_CONFIG = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 24}


def files(
    config: Mapping[str, Any] | None = None,
    weights: Tensors | None = None,
    more: Mapping[str, object] | None = None,
) -> dict[str, bytes]:
    """A whole repository, file name → content.

    ``config`` overrides keys of config.json; ``more`` adds files (objects become JSON) or, with None, removes them.
    """
    merged = {**CONFIG, **(config or {})}
    found = {
        "config.json": json.dumps(merged).encode(),
        "model.safetensors": save(tensors(merged) if weights is None else weights, {"format": "pt"}),
        "tokenizer.json": tokenizer_json().encode(),
        "tokenizer_config.json": json.dumps(TOKENIZER_CONFIG).encode(),
        "README.md": b"---\nlicense: mit\n---\n# tiny\n",
    }
    for name, value in (more or {}).items():
        if value is None:
            found.pop(name)
        else:
            found[name] = value if isinstance(value, bytes) else json.dumps(value).encode()
    return found


def write(folder: Path, contents: Mapping[str, bytes]) -> Path:
    """Put ``contents`` into ``folder``."""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def modules(*kinds: str, package: str = "sentence_transformers.models") -> list[dict[str, Any]]:
    """A modules.json: Transformer in the root, then one folder for each of ``kinds``."""
    entries = [{"idx": 0, "name": "0", "path": "", "type": f"{package}.Transformer"}]
    for i, kind in enumerate(kinds, 1):
        entries.append({"idx": i, "name": str(i), "path": f"{i}_{kind}", "type": f"{package}.{kind}"})
    return entries


MEAN = {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True}
