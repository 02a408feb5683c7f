"""NomicBERT in its own layout: v1 with dynamic NTK by each text's length, and v2-moe.

Sources: nomic-ai/contrastors, modeling_hf_nomic_bert.py (Apache-2.0); for the mixture of experts (megablocks' layout:
w1 and w2 both [experts · ffn, width], the weights of the chosen experts not renormalised) nomic-ai/nomic-bert-2048 as
restated by Text Embeddings Inference, backends/candle/src/models/nomic.rs, and vLLM, bert_with_rope.py.
"""

from typing import Any

import torch
from torch import Tensor

from tests.adapters.references.plain import Reference, attend, gelu, rotate, silu

V1: dict[str, Any] = {
    "activation_function": "swiglu",
    "architectures": ["NomicBertModel"],
    "auto_map": {
        "AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig",
        "AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel",
        "AutoModelForMaskedLM": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertForPreTraining",
    },
    "causal": False,
    "layer_norm_epsilon": 0.02,
    "max_trained_positions": 6,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "model_type": "nomic_bert",
    "n_embd": 32,
    "n_head": 4,
    "n_inner": 200,
    "n_layer": 2,
    "n_positions": 64,
    "pad_token_id": 0,
    "pad_vocab_size_multiple": 64,
    "parallel_block": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": 2,
    "scale_attn_weights": True,
    "type_vocab_size": 2,
    "use_rms_norm": False,
    "vocab_size": 97,
}

V2_MOE = V1 | {
    "activation_function": "gelu",
    "expert_choice_router": False,
    "ffn_div": 1,
    "max_position_embeddings": 64,
    "mlp_fc1_bias": True,
    "mlp_fc2_bias": True,
    "moe_every_n_layers": 2,
    "moe_impl": "megablocks",
    "moe_normalize_expert_weights": False,
    "moe_top_k": 2,
    "n_inner": 48,
    "n_layer": 3,
    "num_experts": 4,
    "num_shared_experts": 0,
    "qkv_proj_bias": True,
    "rotary_scaling_factor": None,
    "type_vocab_size": 1,
}


class Nomic(Reference):
    """v1 or v2-moe, as ``facts`` say."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.moe = "num_experts" in facts
        d, biased = facts["n_embd"], facts["qkv_proj_bias"]
        f = facts["n_inner"] if self.moe else 256
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (128, d),
            "embeddings.token_type_embeddings.weight": (facts["type_vocab_size"], d),
            "emb_ln.weight": (d,),
            "emb_ln.bias": (d,),
        }
        for i in range(facts["n_layer"]):
            n = f"encoder.layers.{i}"
            linears = {"attn.Wqkv": (3 * d, d), "attn.out_proj": (d, d)}
            if not self.moe:
                linears |= {"mlp.fc11": (f, d), "mlp.fc12": (f, d), "mlp.fc2": (d, f)}
            elif i % 2 == 0:
                linears |= {"mlp.fc1": (f, d), "mlp.fc2": (d, f)}
            else:
                many = facts["num_experts"] * f
                shapes |= {f"{n}.mlp.router.layer.weight": (facts["num_experts"], d)}
                shapes |= {f"{n}.mlp.experts.mlp.w1": (many, d), f"{n}.mlp.experts.mlp.w2": (many, d)}
                shapes |= {f"{n}.mlp.experts.bias": (d,)}
            for name, shape in linears.items():
                shapes[f"{n}.{name}.weight"] = shape
                if biased:
                    shapes[f"{n}.{name}.bias"] = shape[:1]
            for norm in ("norm1", "norm2"):
                shapes |= {f"{n}.{norm}.weight": (d,), f"{n}.{norm}.bias": (d,)}
        super().__init__(facts, shapes)

    def encode(self, ids: Tensor) -> Tensor:
        eps = self.config.layer_norm_epsilon
        x = (
            self["embeddings.word_embeddings.weight"][ids]
            + self["embeddings.token_type_embeddings.weight"][0]
        )
        x = self.layer_norm(x, "emb_ln", eps)
        for i in range(self.config.n_layer):
            n = f"encoder.layers.{i}"
            x = self.layer_norm(x + self.attention(x, n), f"{n}.norm1", eps)
            if not self.moe:
                m = self.gated(x, n)
            elif i % 2 == 0:
                m = self.linear(gelu(self.linear(x, f"{n}.mlp.fc1")), f"{n}.mlp.fc2")
            else:
                m = self.experts(x, n)
            x = self.layer_norm(x + m, f"{n}.norm2", eps)
        return x

    def frequencies(self, length: int) -> Tensor:
        size = self.config.n_embd // self.config.n_head
        base, factor, trained = float(self.config.rotary_emb_base), self.config.rotary_scaling_factor, 6
        if factor and length > trained:
            base *= (factor * length / trained - (factor - 1)) ** (size / (size - 2))
        return torch.tensor([base ** (-2 * i / size) for i in range(size // 2)], dtype=torch.float64)

    def attention(self, x: Tensor, n: str) -> Tensor:
        d, heads = self.config.n_embd, self.config.n_head
        size = d // heads
        qkv = self.linear(x, f"{n}.attn.Wqkv")
        turns = self.frequencies(len(x))
        out = []
        for head in range(heads):
            q, k, v = (qkv[:, part * d + head * size :][:, :size] for part in range(3))
            none = torch.zeros(len(x), len(x), dtype=x.dtype)
            out.append(attend(rotate(q, turns), rotate(k, turns), v, none))
        return self.linear(torch.cat(out, -1), f"{n}.attn.out_proj")

    def gated(self, x: Tensor, n: str) -> Tensor:
        value, gate = self.linear(x, f"{n}.mlp.fc11"), self.linear(x, f"{n}.mlp.fc12")
        return self.linear(value * silu(gate), f"{n}.mlp.fc2")

    def experts(self, x: Tensor, n: str) -> Tensor:
        f, out = self.config.n_inner, []
        w1, w2 = self[f"{n}.mlp.experts.mlp.w1"], self[f"{n}.mlp.experts.mlp.w2"]
        for token in x:
            shares = torch.softmax(self[f"{n}.mlp.router.layer.weight"] @ token, -1)
            total = self[f"{n}.mlp.experts.bias"].clone()
            for expert in sorted(range(len(shares)), key=lambda e: -shares[e].item())[
                : self.config.moe_top_k
            ]:
                rows = slice(expert * f, (expert + 1) * f)
                total += shares[expert] * (gelu(w1[rows] @ token) @ w2[rows])
            out.append(total)
        return torch.stack(out)
