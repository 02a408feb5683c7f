"""Evidence of a TensorRT build as rows and as sentences."""

from typing import Any

from bei.manifest import Profile
from bei.runtime.evidence import Gemm, layers, sentences

EVIDENCE: dict[str, Any] = {
    "attention_layers": 3,
    "fused_attention": 2,
    "unfused_attention": ["layers.2.attention"],
    "kernels": 40,
    "kernels_per_layer": [9, 10],
    "gemm_accumulation": {
        "layers.0.q": "fp32",
        "layers.1.q": "library's choice",
        "layers.10.q": "not readable",
        "layers.2.q": "fp32",
        "head.dense": "fp32",
    },
    "gemm_weights": {"layers.0.q": "Half", "layers.1.q": "BFloat16", "head.dense": "Float"},
    "attention_accumulation": {
        "layers.0.attention": ["fp32", "fp32"],
        "layers.1.attention": ["fp32", "fp16"],
    },
    "weight_bytes": {"Half": 3 << 20, "Float": 2048},
    "plan_bytes": 5 << 20,
}


def test_layers_in_their_order_and_the_rest_at_the_end() -> None:
    rows = layers(EVIDENCE)
    assert [row.name for row in rows] == ["0", "1", "2", "10", "other"]
    assert [row.kernels for row in rows] == [9, 10, None, None, None]
    assert [row.fused for row in rows] == [True, True, False, True, True]
    assert [row.attention for row in rows[:3]] == [("fp32", "fp32"), ("fp32", "fp16"), None]
    assert rows[0].gemms == {"q": Gemm(accumulation="fp32", weights="fp16")}
    assert rows[1].gemms == {"q": Gemm(accumulation="library's choice", weights="bf16")}
    assert rows[3].gemms == {"q": Gemm(accumulation="not readable", weights=None)}
    assert rows[4].gemms == {"head.dense": Gemm(accumulation="fp32", weights="fp32")}


def test_sentences_count_what_is_not_as_it_should_be() -> None:
    profiles = (
        Profile(max_batch=64, max_length=512, max_tokens=16384, activation_bytes=384 << 20),
        Profile(max_batch=8, max_length=512, max_tokens=4096),
    )
    fused, accumulation, weights, activations = sentences(EVIDENCE, profiles)
    assert fused == "2 of 3 attentions fused, 9 kernels a layer, 40 kernels in all"
    assert "3 products fp32, 1 products library's choice, 1 products not readable" in accumulation
    assert "1 attentions fp32, 1 attentions fp32 and fp16" in accumulation
    assert weights == "weights as read: fp16 3.0 MiB, fp32 2 KiB; plan 5.0 MiB"
    assert activations == "activations: 384.0 MiB for 64 × 512"


def test_other_engines_have_nothing_of_the_kind() -> None:
    assert layers({"nodes": 7}) == []
    assert list(sentences({"nodes": 7})) == []
