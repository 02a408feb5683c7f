"""From groups of tensors and a configuration to the tensors of a checkpoint, in the order of a state dict."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bei.compiler.checkpoint.stored import DTYPES
from bei.compiler.zoo.fact_files import CheckpointFacts, Dim, Shape, tensor_groups

_KEYS: Mapping[str, tuple[str, ...]] = {
    "L": ("num_hidden_layers", "n_layer"),
    "V": ("vocab_size",),
    "D": ("hidden_size", "n_embd"),
    "H": ("num_attention_heads", "n_head"),
    "F": ("intermediate_size", "n_inner"),
    "P": ("max_position_embeddings",),
    "T": ("type_vocab_size",),
    "E": ("num_experts",),
    "B": ("relative_attention_num_buckets",),
    "X": ("num_labels",),
}
"""Symbol → configuration keys, the first that is there."""

_LAYER = re.compile(r"\{(i|later|even|odd)\}")
_PRODUCT = re.compile(r"(\d*)([A-Za-z]*)")


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """A tensor to be stored; ``layer`` is its index, None outside the layers."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    layer: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def dimensions(config: Mapping[str, Any]) -> dict[str, int]:
    """Symbol → size, for the symbols that this configuration decides."""
    sizes = {
        symbol: int(config[key])
        for symbol, keys in _KEYS.items()
        for key in reversed(keys)
        if config.get(key) is not None
    }
    sizes["d"] = int(config.get("head_dim") or sizes["D"] // sizes["H"])
    sizes["Q"] = sizes["H"] * sizes["d"]
    sizes["K"] = int(config.get("num_key_value_heads") or sizes["H"]) * sizes["d"]
    if "id2label" in config:
        sizes["C"] = len(config["id2label"])
    return sizes


def size_of(dim: Dim, sizes: Mapping[str, int]) -> int:
    """A number, or a product such as `3D`; a KeyError names a symbol that the configuration does not decide."""
    if isinstance(dim, int):
        return dim
    found = _PRODUCT.fullmatch(dim)
    assert found is not None, f"not a shape: {dim!r}"
    return int(found[1] or 1) * math.prod(sizes[symbol] for symbol in found[2])


def tensors_of(facts: CheckpointFacts, config: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    """Every tensor that the checkpoint has with this configuration: embeddings, layer by layer, then the rest."""
    sizes = dimensions(config)
    found = [
        spec
        for prefix, groups in facts.tensors.items()
        for group in groups
        for pattern, shape in tensor_groups()[group].items()
        for spec in _expand(prefix + pattern, shape, facts.dtype, sizes)
    ]
    return tuple(sorted(found, key=_place))


def parameters(tensors: tuple[TensorSpec, ...]) -> int:
    """Numbers in the float tensors; integer buffers are no parameters."""
    return sum(math.prod(spec.shape) for spec in tensors if spec.dtype != "I64")


def _place(spec: TensorSpec) -> int:
    if spec.layer is not None:
        return spec.layer
    return -1 if "emb" in spec.name else 1 << 30


def _expand(
    pattern: str, shape: Shape | Mapping[str, Shape], dtype: str, sizes: Mapping[str, int]
) -> Iterator[TensorSpec]:
    if isinstance(shape, Mapping):
        ((dtype, shape),) = shape.items()
    resolved = tuple(size_of(dim, sizes) for dim in shape)
    for layer, name in _layers(pattern, sizes["L"]):
        if name.endswith(".*"):
            yield TensorSpec(name=f"{name[:-1]}weight", dtype=dtype, shape=resolved, layer=layer)
            yield TensorSpec(name=f"{name[:-1]}bias", dtype=dtype, shape=resolved[:1], layer=layer)
        else:
            yield TensorSpec(name=name, dtype=dtype, shape=resolved, layer=layer)


def _layers(pattern: str, count: int) -> Iterator[tuple[int | None, str]]:
    found = _LAYER.search(pattern)
    if found is None:
        yield None, pattern
        return
    chosen = {
        "i": range(count),
        "later": range(1, count),
        "even": range(0, count, 2),
        "odd": range(1, count, 2),
    }
    for layer in chosen[found[1]]:
        yield layer, pattern.replace(found[0], str(layer))
