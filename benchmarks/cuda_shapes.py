"""Encoders of known shapes with random weights, made on the GPU in no time and without transformers."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bei.adapters.config import EncoderConfig, Layer, Moe, Rope
from bei.adapters.head import Head, Normalize
from bei.compiler.lowering.signature import signature
from bei.compiler.weights import Weight

EMBED = Head(task="embed", pooling=("mean",), steps=(Normalize(),))
VOCAB = 30000


def _bert(dim: int, layers: int, heads: int) -> EncoderConfig:
    return EncoderConfig(
        vocab=VOCAB, dim=dim, layers=(Layer(),) * layers, heads=heads, kv_heads=heads, head_dim=dim // heads,
        ffn=4 * dim, act="gelu", gated=False, norm="layer", norm_eps=1e-12, placement="post",
        attn_scale=(dim // heads) ** -0.5, positions=512, types=2, embed_norm=True,
    )  # fmt: skip


def _rope(theta: float, dim: int = 64) -> Rope:
    return Rope(dim=dim, theta=theta)


_BASE = _bert(768, 12, 12)
_MIXED = Moe(experts=8, top_k=2, renormalize=False)
CONFIGS: dict[str, EncoderConfig] = {
    "bert-base": _BASE,
    "bert-large": _bert(1024, 24, 16),
    "minilm-l6": _bert(384, 6, 12),
    "nomic-v1.5": replace(
        _BASE, act="silu", gated=True, positions=0, layers=(Layer(rope=_rope(1000)),) * 12
    ),
    "nomic-v2-moe": replace(
        _BASE,
        positions=0,
        types=1,
        layers=tuple(Layer(rope=_rope(10000), moe=_MIXED if i % 2 else None) for i in range(12)),
    ),
    "modernbert-base": replace(
        _BASE,
        layers=tuple(
            Layer(rope=_rope(160000 if i % 3 == 0 else 10000), window=None if i % 3 == 0 else 64, attn_norm=i > 0)
            for i in range(22)
        ),
        ffn=1152, gated=True, norm_eps=1e-5, placement="pre", positions=0, types=0, final_norm=True,
    ),
    "qwen3-0.6b": EncoderConfig(
        vocab=VOCAB, dim=1024, layers=(Layer(rope=_rope(1e6, 128)),) * 28, heads=16, kv_heads=8, head_dim=128, ffn=3072,
        act="silu", gated=True, norm="rms", norm_eps=1e-6, placement="pre", attn_scale=128**-0.5, final_norm=True,
        causal=True, qk_norm="head", qk_norm_eps=1e-6,
    ),
    "embeddinggemma": EncoderConfig(
        vocab=VOCAB, dim=768,
        layers=tuple(
            Layer(rope=_rope(1e6, 256)) if i % 6 == 5 else Layer(rope=_rope(1e4, 256), window=256) for i in range(24)
        ),
        heads=3, kv_heads=1, head_dim=256, ffn=1152, act="gelu_tanh", gated=True, norm="rms", norm_eps=1e-6,
        placement="sandwich", attn_scale=256**-0.5, embed_scale=768**0.5, final_norm=True, qk_norm="head",
        qk_norm_eps=1e-6,
    ),
}  # fmt: skip


def random_weights(cfg: EncoderConfig, folder: Path) -> Mapping[str, Weight]:
    """fp16 weights in one file of ``folder``: matrices of standard deviation 1/√in, norms near 1, biases near 0."""
    needs = signature(cfg, EMBED)
    torch.manual_seed(0)
    weights, at = {}, 0
    with open(folder / "weights", "wb") as file:
        for name, shape in (needs.needed | needs.optional).items():
            noise = torch.randn(shape, device="cuda")
            if len(shape) == 1:
                values = 0.02 * noise + (1 if name.endswith("norm.weight") else 0)
            else:
                values = noise * (0.05 if name.startswith("embed.") else shape[-1] ** -0.5)
            data = values.half().cpu().numpy()
            file.write(data.tobytes())
            weights[name] = Weight(
                name=name, shape=shape, dtype="F16", folder=folder, file="weights", offset=at
            )
            at += data.nbytes
    return weights


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The smallest over rows; NaN is −1."""
    value = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return float(np.nan_to_num(value, nan=-1.0).min())
