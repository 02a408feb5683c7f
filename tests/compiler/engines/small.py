"""Two-layer encoders with random weights in a safetensors file, emitted for TensorRT."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from bei.adapters.config import EncoderConfig, Layer, Rope
from bei.adapters.head import Head, Normalize
from bei.compiler.checkpoint.stored import StoredTensor
from bei.compiler.engines.tensorrt import TensorRtOptions
from bei.compiler.lowering.emit import EmittedGraph, emit
from bei.compiler.lowering.policy import TENSORRT
from bei.compiler.lowering.signature import signature
from bei.compiler.target import parse_target
from bei.compiler.weights import Weight

HEAD = Head(task="embed", pooling=("mean",), steps=(Normalize(),))
FILE = "model.safetensors"

BERT = EncoderConfig(
    vocab=100,
    dim=64,
    layers=(Layer(), Layer()),
    heads=2,
    kv_heads=2,
    head_dim=32,
    ffn=128,
    act="gelu",
    gated=False,
    norm="layer",
    norm_eps=1e-12,
    placement="post",
    attn_scale=32**-0.5,
    positions=64,
    types=2,
    embed_norm=True,
)

_ROPE = Rope(theta=10000.0, dim=64)
WINDOWED = replace(
    BERT,
    dim=128,
    layers=(Layer(rope=_ROPE), Layer(rope=_ROPE, window=8)),
    kv_heads=1,
    head_dim=64,
    act="silu",
    gated=True,
    norm="rms",
    norm_eps=1e-6,
    placement="pre",
    positions=0,
    types=0,
    embed_norm=False,
    final_norm=True,
    qk_norm="head",
    qk_norm_eps=1e-6,
)
"""Grouped queries, rotary positions, q/k norm, a sliding window in the second layer."""


def random_weights(
    cfg: EncoderConfig, folder: Path, dtype: npt.DTypeLike = np.float32
) -> Mapping[str, Weight]:
    """Every weight ``cfg`` takes, written to one file and described as views of it."""
    rng = np.random.default_rng(0)
    needs = signature(cfg, HEAD)
    shapes = {**needs.needed, **(needs.optional if cfg.norm == "layer" else {})}
    tensors = {name: _random(rng, name, shape).astype(dtype) for name, shape in shapes.items()}
    save_file(tensors, folder / FILE)
    return {name: _weight(folder, name, stored) for name, stored in _stored(folder).items()}


def _random(
    rng: np.random.Generator, name: str, shape: tuple[int, ...]
) -> np.ndarray[Any, np.dtype[np.float32]]:
    values = rng.standard_normal(shape, np.float32) * np.float32(0.05)
    return values + np.float32(1) if "norm.weight" in name else values


def _stored(folder: Path) -> dict[str, StoredTensor]:
    data = (folder / FILE).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    return {
        name: StoredTensor(
            name=name,
            file=FILE,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            offset=start + entry["data_offsets"][0],
            nbytes=entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _weight(folder: Path, name: str, stored: StoredTensor) -> Weight:
    return Weight(
        name=name, shape=stored.shape, dtype=stored.dtype, folder=folder, file=FILE, offset=stored.offset
    )


def graph(
    cfg: EncoderConfig, folder: Path, layout: Literal["padded", "packed"], **policy: Any
) -> EmittedGraph:
    """The encoder as TensorRT gets it; ``policy`` changes fields of the lowering policy."""
    return emit(cfg, HEAD, random_weights(cfg, folder), replace(TENSORRT, layout=layout, **policy))


def options(target: str, layout: Literal["padded", "packed"] = "padded", **changes: Any) -> TensorRtOptions:
    """Small limits."""
    plain = TensorRtOptions(
        target=parse_target(target), layout=layout, max_batch=8, max_length=64, max_batch_tokens=256
    )
    return replace(plain, **changes)
