"""Checkpoints that transformers cannot load as they are, or would load as another function, made loadable.

Nothing that comes with a checkpoint is executed: `translated` lays out the same weights beside a config.json, and where
needed tokenizer and module files, that say in transformers' own words what the checkpoint's code does.

    new                   → gte; the fixed NTK scaling is a linear one
    llama_bidirec         → llama with is_causal false
    qwen3, qwen2 + code   → is_causal false; voyage's projection as a Dense module of every token; gte's end token
    nomic_bert, old keys  → its new keys
    jina's bert, nomic's mixtures and per-text NTK   → `bei.compiler.parity.references`
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bei.errors import ParityError

Config = dict[str, Any]
Files = dict[str, bytes]
"""Path inside the folder → content that replaces the checkpoint's."""

POOLINGS = {"avg": "mean", "cls": "cls", "last": "lasttoken"}
PROJECTION = "linear.weight"
JINA_CODE = "jina-bert-v2-qk-post-norm"


@contextmanager
def translated(folder: Path) -> Iterator[Path]:
    """``folder`` itself where transformers reads it rightly, else a folder of links with the changed files in it.

    It is there while loading; loaded weights stay. Raises ParityError for a checkpoint without any reference.
    """
    config = read_config(folder)
    translate = TRANSLATIONS.get(str(config.get("model_type")))
    try:
        files = {} if translate is None else translate(folder, config)
    except KeyError as error:
        raise ParityError(f"{folder}: config.json lacks {error}. Is it complete?") from None
    if not files:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="bei-reference-") as name:
        there = Path(name, folder.name or "checkpoint")
        _lay_out(folder, there, files)
        yield there


def _lay_out(folder: Path, there: Path, files: Mapping[str, bytes]) -> None:
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if path.is_file() and relative.as_posix() not in files:
            (there / relative).parent.mkdir(parents=True, exist_ok=True)
            os.symlink(path.absolute(), there / relative)
    for name, data in files.items():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_bytes(data)


def _gte(folder: Path, config: Config) -> Files:
    """inv_freq_i = (theta·s)^(−2i/d) / s^(2/d): linear scaling by s^(2/d) of theta·s."""
    _need(
        folder, config, logn_attention_scale=False, logn_attention_clip1=False, layer_norm_type="layer_norm"
    )
    scaling = config.pop("rope_scaling", None) or {}
    theta, factor = float(config.get("rope_theta", 10_000.0)), float(scaling.get("factor", 1.0))
    size = config["hidden_size"] // config["num_attention_heads"]
    rope = {"rope_type": "default", "rope_theta": theta}
    if scaling:
        _need(folder, scaling, type="ntk", mixed_b=None)
        rope = {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / size)}
    return _config(config | {"model_type": "gte", "rope_parameters": rope})


def _llama(folder: Path, config: Config) -> Files:
    files = _config(config | {"model_type": "llama", "is_causal": False, "architectures": ["LlamaModel"]})
    pooling = POOLINGS[config.get("pooling", "avg")]
    return files if (folder / "modules.json").exists() else files | _modules(config, pooling)


def _qwen3(folder: Path, config: Config) -> Files:
    if not config.pop("use_bidirectional_attention", False):
        return {}
    files = _config(config | {"is_causal": False, "architectures": ["Qwen3Model"]})
    weight = _stored(folder, PROJECTION)
    return files if weight is None else files | _projection(folder, config, weight)


def _qwen2(folder: Path, config: Config) -> Files:
    """gte's code looks both ways, and its tokenizer ends every text with the end token."""
    named = str((config.get("auto_map") or {}).get("AutoModel", ""))
    if named.split("--")[-1] != "modeling_qwen.Qwen2Model":
        return {}
    files = _config(config | {"is_causal": False, "architectures": ["Qwen2Model"]})
    settings = _read(folder / "tokenizer_config.json")
    if "tokenization_qwen" not in str(settings.pop("auto_map", "")) or not settings.get("add_eos_token"):
        return files
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.pop("add_eos_token")
    return files | {
        "tokenizer_config.json": _json(settings),
        "tokenizer.json": _json(_with_end(_read(folder / "tokenizer.json"), settings["eos_token"])),
    }


def _with_end(tokenizer: Config, eos: str | Mapping[str, str]) -> Config:
    token = eos if isinstance(eos, str) else eos["content"]
    number = next(added["id"] for added in tokenizer["added_tokens"] if added["content"] == token)
    end = {"SpecialToken": {"id": token, "type_id": 0}}
    text = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    template = {
        "type": "TemplateProcessing",
        "single": [text[0], end],
        "pair": [text[0], end, text[1], end],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
    own = tokenizer.get("post_processor")
    both = template if own is None else {"type": "Sequence", "processors": [own, template]}
    return tokenizer | {"post_processor": both}


def _nomic(folder: Path, config: Config) -> Files:
    """Newer files have both spellings, and transformers reads the new one."""
    if "n_embd" not in config:
        return {}
    mixed, factor = (config.get("num_experts") or 0) > 1, config.get("rotary_scaling_factor")
    if "hidden_size" in config and not mixed and not factor:
        return {}
    _need(
        folder,
        config,
        prenorm=False,
        use_rms_norm=False,
        causal=False,
        rotary_emb_fraction=1.0,
        rotary_emb_interleaved=False,
        rotary_emb_scale_base=None,
        parallel_block=False,
        moe_normalize_expert_weights=False,
        num_shared_experts=0,
        expert_choice_router=False,
    )
    rows = config.get("pad_vocab_size_multiple") or 1
    sizes = {
        "vocab_size": -(-config["vocab_size"] // rows) * rows,
        "num_hidden_layers": config["n_layer"],
        "hidden_size": config["n_embd"],
        "max_position_embeddings": config["n_positions"],
    }
    inner = config.get("n_inner") or 4 * config["n_embd"]
    if mixed or factor:
        own = {"model_type": "bei-nomic-bert", "n_inner": inner if mixed else -(-inner // 256) * 256}
        return _own_config(config | sizes | own | {"num_experts": config.get("num_experts") if mixed else 0})
    acts = {"swiglu": "silu", "geglu": "gelu"}
    new = {
        "num_attention_heads": config["n_head"],
        "intermediate_size": -(-inner // 256) * 256,
        "hidden_act": acts[config["activation_function"]],
        "layer_norm_eps": config["layer_norm_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": float(config["rotary_emb_base"])},
    }
    same = ("type_vocab_size", "pad_token_id", "model_type", "torch_dtype", "id2label", "label2id")
    return _config({key: config[key] for key in same if key in config} | sizes | new)


def _jina(folder: Path, config: Config) -> Files:
    if config.get("position_embedding_type") != "alibi":
        return {}
    _need(folder, config, hidden_act="gelu")
    if config.get("feed_forward_type") not in ("geglu", "reglu"):
        _need(folder, config, feed_forward_type="geglu")
    code = JINA_CODE in f"{config.pop('_name_or_path', '')} {config.get('auto_map', '')}"
    config.pop("attn_implementation", None)
    return _own_config(config | {"model_type": "bei-jina-bert", "qk_post_norm": code})


TRANSLATIONS: Mapping[str, Callable[[Path, Config], Files]] = {
    "new": _gte,
    "llama_bidirec": _llama,
    "qwen3": _qwen3,
    "qwen2": _qwen2,
    "nomic_bert": _nomic,
    "bert": _jina,
}


def _own_config(config: Config) -> Files:
    """For a class of `bei.compiler.parity.references`, which transformers is told about."""
    from bei.compiler.parity.references.register import register

    register()
    return _config(config)


def _config(config: Config) -> Files:
    return {"config.json": _json({key: value for key, value in config.items() if key != "auto_map"})}


def _modules(config: Config, pooling: str, *before: Mapping[str, str]) -> Files:
    """sentence-transformers files for a checkpoint that has none."""
    kinds = [{"path": "", "type": "Transformer"}, *before, {"path": "1_Pooling", "type": "Pooling"}]
    flag = "pooling_mode_mean_tokens" if pooling == "mean" else f"pooling_mode_{pooling}"
    flag = "pooling_mode_cls_token" if pooling == "cls" else flag
    width = {"word_embedding_dimension": config["hidden_size"]}
    modes = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": False, flag: True}
    return {"modules.json": _module_list(kinds), "1_Pooling/config.json": _json(width | modes)}


def _module_list(kinds: list[Mapping[str, str]]) -> bytes:
    listed = [
        {
            "idx": i,
            "name": str(i),
            "path": kind["path"],
            "type": f"sentence_transformers.models.{kind['type']}",
        }
        for i, kind in enumerate(kinds)
    ]
    return _json(listed)


def _projection(folder: Path, config: Config, weight: Any) -> Files:
    """A Dense module of every token, between the model and its pooling."""
    from safetensors.numpy import save

    place = "0_Projection"
    wide, narrow = weight.shape
    module = {
        "in_features": narrow,
        "out_features": wide,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
        "module_input_name": "token_embeddings",
    }
    files = {f"{place}/config.json": _json(module), f"{place}/model.safetensors": save({PROJECTION: weight})}
    dense = {"path": place, "type": "Dense"}
    if not (folder / "modules.json").exists():
        return files | _modules(config | {"hidden_size": wide}, "mean", dense)
    kinds = [
        {"path": entry["path"], "type": entry["type"].rsplit(".", 1)[-1]}
        for entry in json.loads((folder / "modules.json").read_bytes())
    ]
    return files | {"modules.json": _module_list([kinds[0], dense, *kinds[1:]])}


def stored_tensor(folder: Path, name: str) -> Any:
    """A tensor of the checkpoint as a torch tensor; None where it is not stored."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if name in file.keys():  # noqa: SIM118  (not a mapping)
                return file.get_tensor(name)
    return None


def _stored(folder: Path, name: str) -> Any:
    """In float32, as numpy has it."""
    found = stored_tensor(folder, name)
    return None if found is None else found.float().numpy()


def _need(folder: Path, config: Mapping[str, Any], **facts: Any) -> None:
    """Absent means as needed: it is what the code's own defaults are."""
    for key, value in facts.items():
        if config.get(key, value) != value:
            raise ParityError(
                f"{folder}: no reference for {key}={config[key]!r} (there is one for {value!r}). "
                "Give a reference of its own."
            )


def read_config(folder: Path) -> Config:
    """config.json. Raises ParityError."""
    return _read(folder / "config.json")


def _read(path: Path) -> Config:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise ParityError(f"{path}: cannot be read ({error}).") from None
    if not isinstance(found, dict):
        raise ParityError(f"{path}: got {type(found).__name__}, need an object.")
    return found


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
