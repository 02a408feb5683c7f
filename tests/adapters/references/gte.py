"""GTE in Alibaba's own layout, with its fixed NTK scaling of rotary positions.

Source: Alibaba-NLP/new-impl, modeling.py (Apache-2.0), `NTKScalingRotaryEmbedding` without `mixed_b`; the scaling is
derived at https://kexue.fm/archives/9706. The table is built for the stretched length, so it holds for every text.
"""

from typing import Any

import torch
from torch import Tensor

from tests.adapters.references.plain import Reference, attend, gelu, rotate

CLASSES = {"AutoConfig": "configuration.NewConfig", "AutoModel": "modeling.NewModel"}

CONFIG: dict[str, Any] = {
    "architectures": ["NewModel"],
    "auto_map": {key: f"Alibaba-NLP/new-impl--{target}" for key, target in CLASSES.items()},
    "hidden_act": "gelu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "layer_norm_eps": 0.02,
    "layer_norm_type": "layer_norm",
    "logn_attention_clip1": False,
    "logn_attention_scale": False,
    "max_position_embeddings": 40,
    "model_type": "new",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pack_qkv": True,
    "pad_token_id": 0,
    "position_embedding_type": "rope",
    "rope_scaling": {"factor": 8.0, "type": "ntk"},
    "rope_theta": 500,
    "type_vocab_size": 2,
    "unpad_inputs": "true",
    "use_memory_efficient_attention": "true",
    "vocab_size": 97,
}


class Gte(Reference):
    """``types`` 0 is gte-base-en-v1.5, which has no type table."""

    def __init__(self, *, types: int = 2) -> None:
        facts = CONFIG | {"type_vocab_size": types}
        d, f = facts["hidden_size"], facts["intermediate_size"]
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (facts["vocab_size"], d),
            "embeddings.LayerNorm.weight": (d,),
            "embeddings.LayerNorm.bias": (d,),
        }
        if types:
            shapes["embeddings.token_type_embeddings.weight"] = (types, d)
        for i in range(facts["num_hidden_layers"]):
            n = f"encoder.layer.{i}"
            shapes |= {f"{n}.attention.qkv_proj.weight": (3 * d, d), f"{n}.attention.qkv_proj.bias": (3 * d,)}
            shapes |= {f"{n}.attention.o_proj.weight": (d, d), f"{n}.attention.o_proj.bias": (d,)}
            shapes |= {f"{n}.mlp.up_gate_proj.weight": (2 * f, d)}
            shapes |= {f"{n}.mlp.down_proj.weight": (d, f), f"{n}.mlp.down_proj.bias": (d,)}
            for norm in ("attn_ln", "mlp_ln"):
                shapes |= {f"{n}.{norm}.weight": (d,), f"{n}.{norm}.bias": (d,)}
        super().__init__(facts, shapes)

    def encode(self, ids: Tensor) -> Tensor:
        eps = self.config.layer_norm_eps
        x = self["embeddings.word_embeddings.weight"][ids]
        if self.config.type_vocab_size:
            x = x + self["embeddings.token_type_embeddings.weight"][0]
        x = self.layer_norm(x, "embeddings.LayerNorm", eps)
        for i in range(self.config.num_hidden_layers):
            n = f"encoder.layer.{i}"
            x = self.layer_norm(x + self.attention(x, n), f"{n}.attn_ln", eps)
            f = self.config.intermediate_size
            both = self.linear(x, f"{n}.mlp.up_gate_proj")
            m = self.linear(both[:, :f] * gelu(both[:, f:]), f"{n}.mlp.down_proj")
            x = self.layer_norm(x + m, f"{n}.mlp_ln", eps)
        return x

    def attention(self, x: Tensor, n: str) -> Tensor:
        d, heads = self.config.hidden_size, self.config.num_attention_heads
        size, factor = d // heads, self.config.rope_scaling["factor"]
        base = self.config.rope_theta * factor
        turns = torch.tensor(
            [base ** (-2 * i / size) / factor ** (2 / size) for i in range(size // 2)], dtype=torch.float64
        )
        qkv = self.linear(x, f"{n}.attention.qkv_proj")
        out = []
        for head in range(heads):
            q, k, v = (qkv[:, part * d + head * size :][:, :size] for part in range(3))
            none = torch.zeros(len(x), len(x), dtype=x.dtype)
            out.append(attend(rotate(q, turns), rotate(k, turns), v, none))
        return self.linear(torch.cat(out, -1), f"{n}.attention.o_proj")
