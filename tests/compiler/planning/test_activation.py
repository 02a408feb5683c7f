"""The formula against the builder itself, at widths that real models have."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from bei.adapters.config import EncoderConfig, Layer, RelativeBuckets, Rope
from bei.compiler.engines import tensorrt
from bei.compiler.planning.activation import activation_bytes
from bei.compiler.planning.memory import TOLERANCE, tensorrt_weights
from tests.compiler.engines.small import BERT, graph, options, random_weights

rtx = pytest.mark.skipif(tensorrt.available("tensorrt-rtx") is not None, reason="needs TensorRT-RTX")

BASE = replace(BERT, dim=768, heads=12, kv_heads=12, head_dim=64, ffn=3072, attn_scale=0.125, positions=512)
ROPE = Rope(theta=10000.0, dim=64)
GATED = replace(
    BASE,
    layers=(Layer(rope=ROPE), Layer(rope=ROPE, window=64)),
    ffn=1152,
    gated=True,
    placement="pre",
    positions=0,
    types=0,
    embed_norm=False,
    final_norm=True,
)
NOMIC = replace(BASE, layers=(Layer(rope=ROPE), Layer(rope=ROPE)), act="silu", gated=True, positions=0)
QWEN = replace(
    GATED,
    layers=(Layer(rope=ROPE), Layer(rope=ROPE)),
    kv_heads=4,
    ffn=3072,
    act="silu",
    norm="rms",
    norm_eps=1e-6,
    causal=True,
    qk_norm="head",
    qk_norm_eps=1e-6,
)


@rtx
@pytest.mark.parametrize(
    ("cfg", "layout", "rows", "length"),
    [
        (BASE, "padded", 32, 512),
        (replace(BASE, dim=384, head_dim=32, ffn=1536), "packed", 32, 128),
        (GATED, "packed", 4, 2048),
        (QWEN, "padded", 128, 128),
        (NOMIC, "padded", 4, 2048),
        (replace(BASE, act="silu"), "padded", 32, 512),
    ],
    ids=["bert-base", "minilm", "window", "qwen", "nomic", "activation apart"],
)
def test_activation_is_foreseen(
    cfg: EncoderConfig, layout: Literal["padded", "packed"], rows: int, length: int, tmp_path: Path
) -> None:
    limits = {"max_batch": rows, "max_length": length, "max_batch_tokens": rows * length}
    emitted = graph(cfg, tmp_path, layout)
    built = tensorrt.build(
        emitted.serialize(),
        emitted.weights,
        options("tensorrt-rtx-sm89", layout, **limits),
        tmp_path / "plan",
    )
    (profile,) = built.profiles
    assert profile.activation_bytes
    foreseen = activation_bytes(cfg, rows, length)
    assert foreseen == pytest.approx(profile.activation_bytes, rel=TOLERANCE)
    assert tensorrt_weights(random_weights(cfg, tmp_path)) == pytest.approx(
        sum(built.evidence["weight_bytes"].values()), rel=0.01
    )


def test_more_work_needs_more_memory() -> None:
    sizes = [activation_bytes(BASE, rows, 512) for rows in (8, 16, 64)]
    assert sizes == sorted(sizes)
    assert activation_bytes(replace(BASE, ffn=8192), 32, 512) > activation_bytes(BASE, 32, 512)
    everywhere = replace(GATED, layers=GATED.layers[:1])
    assert activation_bytes(everywhere, 2, 8192) + 2 * 8192**2 < activation_bytes(GATED, 2, 8192)
    assert activation_bytes(replace(GATED, causal=True), 2, 8192) == activation_bytes(everywhere, 2, 8192)
    plain = activation_bytes(BASE, 16, 512)
    assert activation_bytes(replace(BASE, bias="alibi"), 16, 512) > plain + 16 * 512 * 512 * 2 * 12
    buckets = RelativeBuckets(buckets=32, max_distance=128)
    assert activation_bytes(replace(BASE, bias=buckets), 1, 512) > activation_bytes(BASE, 1, 512)
