"""Qwen3: Llama's layers with an RMSNorm on each head of q and k. Causal (Qwen3-Embedding) or not (voyage-4-nano).

voyage-4-nano's own class is Qwen3Model without a mask and a projection, `linear`, of every token.
"""

from dataclasses import replace

from bei.adapters.base import HfConfig, Rows, Shapes, TaskHead, expect, view
from bei.adapters.config import EncoderConfig
from bei.adapters.head import Dense
from bei.adapters.llama import LLAMA, backbone
from bei.adapters.llama import weights as llama_weights
from bei.adapters.qwen2 import windows
from bei.adapters.visibility import is_causal

VOYAGE_MODEL = "Qwen3BidirectionalModel"
PROJECTION = "linear.weight"


def config(hf: HfConfig) -> EncoderConfig:
    expect(hf, attention_bias=False)
    causal = is_causal(hf, "Qwen3", bidirectional=(VOYAGE_MODEL,))
    cfg = backbone(hf, causal=causal, windows=windows(hf, causal))
    return replace(cfg, qk_norm="head", qk_norm_eps=cfg.norm_eps)


def weights(cfg: EncoderConfig) -> Rows:
    yield from llama_weights(cfg)
    for i in range(len(cfg.layers)):
        for x in ("q", "k"):
            yield f"layers.{i}.{x}_norm.weight", view(f"layers.{i}.self_attn.{x}_norm.weight")


def embedding_head(hf: HfConfig, stored: Shapes) -> TaskHead | None:
    """The projection, in revisions that store it beside the layers (others have moved it to a Dense module)."""
    if PROJECTION not in stored:
        return None
    width = stored[PROJECTION][0]
    expect(hf, num_labels=width)
    steps = (Dense(name="head.projection", out=width),)
    return TaskHead(pooling=("mean",), steps=steps, weights=(("head.projection.weight", view(PROJECTION)),))


QWEN3 = replace(
    LLAMA,
    name="qwen3",
    model_types=("qwen3",),
    config=config,
    weights=weights,
    remote_code=(f"modeling_qwen3_bidirectional.{VOYAGE_MODEL}",),
    code_repositories=("voyageai/voyage-4-nano",),
    embedding_head=embedding_head,
)
