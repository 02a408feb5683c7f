"""JinaBERT v2, both variants.

Sources: jinaai/jina-bert-implementation and jinaai/jina-bert-v2-qk-post-norm (modeling_bert.py, Apache-2.0); ALiBi,
Press et al. 2022 (arXiv 2108.12409) with the slopes of its reference implementation, made symmetric.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from bei.compiler.parity.references.plain import HubModel, attend, gelu, split_heads


class JinaConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """The Hub's keys; ``qk_post_norm``: the variant of base-code."""

    model_type = "bei-jina-bert"


def slopes(heads: int) -> list[float]:
    """A geometric series for a power of two; else that of the power below, then every other one of the power above."""
    power = 1 << (heads.bit_length() - 1)
    found = [2.0 ** (-8 * (k + 1) / power) for k in range(power)]
    return found if power == heads else [*found, *slopes(2 * power)[0::2][: heads - power]]


class Jina(HubModel):  # type: ignore[no-untyped-call]
    """Post-norm, GeGLU, ALiBi instead of positions."""

    config_class = JinaConfig

    @staticmethod
    def shapes(config: Any) -> dict[str, tuple[int, ...]]:
        d, f, code = config.hidden_size, config.intermediate_size, config.qk_post_norm
        found: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (config.vocab_size, d),
            "embeddings.token_type_embeddings.weight": (config.type_vocab_size, d),
        }
        up, down = ("up_gated_layer", "down_layer") if code else ("gated_layers", "wo")
        norms = ["attention.output.LayerNorm"]
        norms += ["attention.self.layer_norm_q", "attention.self.layer_norm_k"] if code else ["mlp.layernorm"]
        norms += ["layer_norm_1", "layer_norm_2"] if code else []
        biased = dict.fromkeys(("self.query", "self.key", "self.value", "output.dense"), (d, d))
        for n in (f"encoder.layer.{i}" for i in range(config.num_hidden_layers)):
            found[f"{n}.mlp.{up}.weight"] = (2 * f, d)
            for name, shape in [*((f"attention.{x}", s) for x, s in biased.items()), (f"mlp.{down}", (d, f))]:
                found |= {f"{n}.{name}.weight": shape, f"{n}.{name}.bias": shape[:1]}
            for norm in norms:
                found |= {f"{n}.{norm}.weight": (d,), f"{n}.{norm}.bias": (d,)}
        return found | {f"embeddings.LayerNorm.{p}": (d,) for p in ("weight", "bias")}

    def states(self, ids_BL: Tensor, mask_BL: Tensor) -> list[Tensor]:
        c = self.config
        x = self["embeddings.word_embeddings.weight"][ids_BL]
        x = x + self["embeddings.token_type_embeddings.weight"][0]
        found = [self.layer_norm(x, "embeddings.LayerNorm", c.layer_norm_eps)]
        at = torch.arange(ids_BL.shape[1])
        distance = (at[:, None] - at[None, :]).abs()
        bias = -torch.tensor(slopes(c.num_attention_heads))[:, None, None] * distance
        for n in (f"encoder.layer.{i}" for i in range(c.num_hidden_layers)):
            x = found[-1]
            a = self.linear(self.attention(x, bias, mask_BL, n), f"{n}.attention.output.dense")
            a = self.layer_norm(a + x, f"{n}.attention.output.LayerNorm", c.layer_norm_eps)
            found.append(self.code_mlp(x, a, n) if c.qk_post_norm else self.base_mlp(a, n))
        return found

    def attention(self, x: Tensor, bias: Tensor, mask_BL: Tensor, n: str) -> Tensor:
        q, k, v = (self.linear(x, f"{n}.attention.self.{name}") for name in ("query", "key", "value"))
        if self.config.qk_post_norm:
            q = self.layer_norm(q, f"{n}.attention.self.layer_norm_q", self.config.layer_norm_eps)
            k = self.layer_norm(k, f"{n}.attention.self.layer_norm_k", self.config.layer_norm_eps)
        q, k, v = (split_heads(y, self.config.num_attention_heads) for y in (q, k, v))
        return attend(q, k, v, bias, mask_BL)

    def base_mlp(self, a: Tensor, n: str) -> Tensor:
        gate, value = self.linear(a, f"{n}.mlp.gated_layers", bias=False).chunk(2, -1)
        m = self.linear(self.act(gate) * value, f"{n}.mlp.wo")
        return self.layer_norm(m + a, f"{n}.mlp.layernorm", self.config.layer_norm_eps)

    def code_mlp(self, x: Tensor, a: Tensor, n: str) -> Tensor:
        b = self.layer_norm(x + a, f"{n}.layer_norm_1", self.config.layer_norm_eps)
        value, gate = self.linear(b, f"{n}.mlp.up_gated_layer", bias=False).chunk(2, -1)
        m = self.linear(value * self.act(gate), f"{n}.mlp.down_layer")
        return self.layer_norm(b + m, f"{n}.layer_norm_2", self.config.layer_norm_eps)

    def act(self, x: Tensor) -> Tensor:
        return torch.relu(x) if self.config.feed_forward_type == "reglu" else gelu(x)
