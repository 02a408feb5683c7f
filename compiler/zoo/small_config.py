"""A checkpoint's configuration for a stand-in: fewer layers, and unless the full width is wanted, smaller sizes.

What is kept: every key, the ratio of query to key/value heads, whether the number of heads is a power of two (ALiBi
slopes), the ratio of hidden size to heads times head size, the MLP's ratio, rows beyond the tokenizer's size, two
position rows more than tokens (RoBERTa). Windows become small enough that short texts feel them.
"""

from collections.abc import Mapping
from typing import Any

from bei.compiler.zoo.fact_files import CheckpointFacts, TokenizerFacts
from bei.compiler.zoo.shapes import dimensions
from bei.errors import CheckpointError

HEAD_DIM = 32
POSITIONS = 128
WINDOW = 16
SHORTEST = 64
"""Limits in tokens shrink with the positions, but not below this."""

_POSITIONS = ("max_position_embeddings", "n_positions")
_TEXT_LIMITS = ("model_max_length", "max_trained_positions", "original_max_position_embeddings")


def stand_in_config(
    facts: CheckpointFacts,
    *,
    layers: int,
    full_width: bool,
    full_vocabulary: bool,
    tokenizer: TokenizerFacts,
    ids: Mapping[str, int],
) -> dict[str, Any]:
    """config.json of the stand-in. ``ids``: token → id in its tokenizer, for the special tokens."""
    config = _fewer_layers(dict(facts.config), layers, facts.repo)
    if not full_width:
        shrink = {**_sizes(facts), **_lengths(facts.config)}
        config = {key: _shrunk(key, value, shrink) for key, value in config.items()}
    if not full_vocabulary:
        moved = {real: ids[token] for token, real in tokenizer.ids.items()}
        config = {key: _moved(key, value, moved) for key, value in config.items()}
        config["vocab_size"] = _rows(facts, tokenizer, len(ids))
    return config


def scaled_length(config: Mapping[str, Any], tokens: int, *, full_width: bool) -> int:
    """A limit in tokens that is stored elsewhere, shrunk like those of the configuration."""
    return tokens if full_width else max(SHORTEST, tokens // _factor(config))


def _fewer_layers(config: dict[str, Any], layers: int, repo: str) -> dict[str, Any]:
    real = dimensions(config)["L"]
    if not 1 <= layers <= real:
        raise CheckpointError(f"{repo}: {layers} layers, need 1 to {real}. Give --layers within that range.")
    for key in ("num_hidden_layers", "n_layer", "max_window_layers"):
        if key in config:
            config[key] = min(config[key], layers)
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:layers]
    return config


def _sizes(facts: CheckpointFacts) -> dict[str, int]:
    """New values of the keys that say how wide the model is."""
    real = dimensions(facts.config)
    heads, kv = _heads(real["H"], real["K"] // real["d"])
    dim = real["D"] * heads * HEAD_DIM // real["Q"]
    multiple = facts.ffn_multiple
    ffn = -(-real["F"] * dim // real["D"] // multiple) * multiple
    new = {
        "hidden_size": dim,
        "n_embd": dim,
        "num_attention_heads": heads,
        "n_head": heads,
        "num_key_value_heads": kv,
        "head_dim": HEAD_DIM,
        "query_pre_attn_scalar": facts.config.get("query_pre_attn_scalar", 0) * HEAD_DIM // real["d"],
        "intermediate_size": ffn,
        "n_inner": ffn,
        "num_labels": facts.config.get("num_labels", 0) * dim // real["D"],
    }
    return {key: value for key, value in new.items() if key in facts.config}


def _heads(heads: int, kv: int) -> tuple[int, int]:
    """Halved while at least three are left, and two key/value heads where there are several."""
    while heads % 2 == 0 and heads // 2 >= 3 and (kv == 1 or (kv % 2 == 0 and kv // 2 >= 2)):
        heads, kv = heads // 2, max(1, kv // 2)
    return heads, kv


def _positions(config: Mapping[str, Any]) -> int:
    """The longest text in tokens; nomic's own key may say more than the common one, which holds trained positions."""
    return max(int(config.get(key, 0)) for key in _POSITIONS)


def _factor(config: Mapping[str, Any]) -> int:
    return max(1, _positions(config) // POSITIONS)


def _lengths(config: Mapping[str, Any]) -> dict[str, int]:
    """New values of the keys that count tokens."""
    found: dict[str, int] = {}
    for key in _POSITIONS:
        if config.get(key) == _positions(config):
            found[key] = POSITIONS + config[key] % POSITIONS
        elif key in config:
            found[key] = scaled_length(config, config[key], full_width=False)
    for key in ("local_attention", "sliding_window"):
        if config.get(key) is not None:
            found[key] = min(WINDOW, config[key])
    for key in _TEXT_LIMITS:
        for place in (config, config.get("rope_scaling") or {}):
            if key in place:
                found[key] = scaled_length(config, place[key], full_width=False)
    return found


def _shrunk(key: str, value: Any, shrink: Mapping[str, int]) -> Any:
    if isinstance(value, dict):
        return {inner: _shrunk(inner, held, shrink) for inner, held in value.items()}
    return shrink.get(key, value)


def _moved(key: str, value: Any, ids: Mapping[int, int]) -> Any:
    return ids[value] if key.endswith("_token_id") and value is not None else value


def _rows(facts: CheckpointFacts, tokenizer: TokenizerFacts, used: int) -> int:
    exact = facts.config["vocab_size"] == tokenizer.size
    return used if exact else -(-used // 64) * 64
