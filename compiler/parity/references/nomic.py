"""NomicBERT in its own layout, where transformers' class does not do: v2-moe, and dynamic NTK by each text's length.

Sources: nomic-ai/contrastors, modeling_hf_nomic_bert.py (Apache-2.0); for the mixture of experts (megablocks' layout:
w1 and w2 both [experts · ffn, width], the weights of the chosen experts not renormalised) nomic-ai/nomic-bert-2048 as
restated by Text Embeddings Inference, backends/candle/src/models/nomic.rs, and vLLM, bert_with_rope.py.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from bei.compiler.parity.references.plain import HubModel, attend, gelu, silu, split_heads


class NomicConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """The Hub's older keys, all of them, with ``vocab_size`` and ``n_inner`` as stored."""

    model_type = "bei-nomic-bert"


class Nomic(HubModel):  # type: ignore[no-untyped-call]
    """Post-norm, rotary positions. A gated MLP without biases, or with ``num_experts`` a plain one with them."""

    config_class = NomicConfig

    @staticmethod
    def shapes(config: Any) -> dict[str, tuple[int, ...]]:
        d, f, moe = config.n_embd, config.n_inner, config.num_experts
        found: dict[str, tuple[int, ...]] = {"embeddings.word_embeddings.weight": (config.vocab_size, d)}
        found["embeddings.token_type_embeddings.weight"] = (config.type_vocab_size, d)
        norms = ["emb_ln"]
        for i in range(config.n_layer):
            n = f"encoder.layers.{i}"
            norms += [f"{n}.norm1", f"{n}.norm2"]
            linears = {"attn.Wqkv": (3 * d, d), "attn.out_proj": (d, d)}
            if not moe:
                linears |= {"mlp.fc11": (f, d), "mlp.fc12": (f, d), "mlp.fc2": (d, f)}
            elif not _mixed(config, i):
                linears |= {"mlp.fc1": (f, d), "mlp.fc2": (d, f)}
            else:
                found |= {f"{n}.mlp.router.layer.weight": (moe, d), f"{n}.mlp.experts.bias": (d,)}
                found |= {f"{n}.mlp.experts.mlp.{w}": (moe * f, d) for w in ("w1", "w2")}
            found |= {f"{n}.{name}.weight": shape for name, shape in linears.items()}
            found |= {f"{n}.{name}.bias": shape[:1] for name, shape in linears.items() if moe}
        return found | {f"{norm}.{p}": (d,) for norm in norms for p in ("weight", "bias")}

    def states(self, ids_BL: Tensor, mask_BL: Tensor) -> list[Tensor]:
        c = self.config
        x = self["embeddings.word_embeddings.weight"][ids_BL]
        x = x + self["embeddings.token_type_embeddings.weight"][0]
        found = [self.layer_norm(x, "emb_ln", c.layer_norm_epsilon)]
        angles = self.angles(mask_BL)
        for i in range(c.n_layer):
            n, x = f"encoder.layers.{i}", found[-1]
            x = self.layer_norm(x + self.attention(x, angles, mask_BL, n), f"{n}.norm1", c.layer_norm_epsilon)
            found.append(self.layer_norm(x + self.mlp(x, i), f"{n}.norm2", c.layer_norm_epsilon))
        return found

    def angles(self, mask_BL: Tensor) -> Tensor:
        """[B, 1, L, H/2]: position · frequency; the base grows with a text's own length beyond the trained one."""
        c, size = self.config, self.config.n_embd // self.config.n_head
        base = torch.full((len(mask_BL),), float(c.rotary_emb_base), dtype=torch.float64)
        if c.rotary_scaling_factor:
            ratio = mask_BL.sum(-1).double() / c.max_trained_positions
            grown = (c.rotary_scaling_factor * ratio - (c.rotary_scaling_factor - 1)) ** (size / (size - 2))
            base = torch.where(ratio > 1, base * grown, base)
        frequencies = base[:, None] ** (-2 * torch.arange(size // 2) / size)
        positions = (mask_BL.long().cumsum(-1) - 1).clamp(min=0)
        angles: Tensor = positions[:, :, None] * frequencies[:, None, :]
        return angles[:, None]

    def attention(self, x: Tensor, angles: Tensor, mask_BL: Tensor, n: str) -> Tensor:
        qkv = self.linear(x, f"{n}.attn.Wqkv", bias=bool(self.config.num_experts))
        q, k, v = (split_heads(y, self.config.n_head) for y in qkv.chunk(3, -1))
        mixed = attend(rotate(q, angles), rotate(k, angles), v, torch.zeros(()), mask_BL)
        return self.linear(mixed, f"{n}.attn.out_proj", bias=bool(self.config.num_experts))

    def mlp(self, x: Tensor, i: int) -> Tensor:
        n = f"encoder.layers.{i}.mlp"
        if _mixed(self.config, i):
            return self.experts(x, n)
        if self.config.num_experts:
            return self.linear(gelu(self.linear(x, f"{n}.fc1")), f"{n}.fc2")
        gate = self.linear(x, f"{n}.fc12", bias=False)
        act = silu if self.config.activation_function == "swiglu" else gelu
        return self.linear(self.linear(x, f"{n}.fc11", bias=False) * act(gate), f"{n}.fc2", bias=False)

    def experts(self, x: Tensor, n: str) -> Tensor:
        """Every token's best experts, weighted with their shares of the softmax over all."""
        count, f = self.config.num_experts, self.config.n_inner
        shares = torch.softmax(x @ self[f"{n}.router.layer.weight"].T, -1)
        worst_chosen = shares.topk(self.config.moe_top_k, -1).values[..., -1:]
        shares = shares.where(shares >= worst_chosen, 0.0)
        w1, w2 = (self[f"{n}.experts.mlp.{w}"].view(count, f, -1) for w in ("w1", "w2"))
        total = self[f"{n}.experts.bias"].expand_as(x).clone()
        for expert in range(count):
            chosen = shares[..., expert] > 0
            y = gelu(x[chosen] @ w1[expert].T) @ w2[expert]
            total[chosen] += shares[chosen][:, expert, None] * y
        return total


def _mixed(config: Any, i: int) -> bool:
    return bool(config.num_experts) and i % int(config.moe_every_n_layers) == 1


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """[B, N, L, H]: the pair (i, i + H/2) turns by its angle."""
    a, b = x.chunk(2, -1)
    cos, sin = torch.cos(angles).to(x), torch.sin(angles).to(x)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
