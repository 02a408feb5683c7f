"""JinaBERT v2, both variants.

Sources: jinaai/jina-bert-implementation and jinaai/jina-bert-v2-qk-post-norm (modeling_bert.py, Apache-2.0); ALiBi,
Press et al. 2022 (arXiv 2108.12409) with the slopes of its reference implementation, made symmetric.
"""

from typing import Any

import torch
from torch import Tensor

from tests.adapters.references.plain import Reference, attend, gelu

SIZES = {
    "vocab_size": 97,
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "layer_norm_eps": 0.02,
}


def config(repository: str) -> dict[str, Any]:
    """The Hub's keys; ``repository`` is where the code lies."""
    targets = {
        "AutoConfig": "configuration_bert.JinaBertConfig",
        "AutoModel": "modeling_bert.JinaBertModel",
        "AutoModelForMaskedLM": "modeling_bert.JinaBertForMaskedLM",
        "AutoModelForSequenceClassification": "modeling_bert.JinaBertForSequenceClassification",
    }
    return SIZES | {
        "_name_or_path": f"jinaai/{repository}",
        "architectures": ["JinaBertForMaskedLM"],
        "attn_implementation": "torch",
        "auto_map": {key: f"jinaai/{repository}--{target}" for key, target in targets.items()},
        "emb_pooler": "mean",
        "feed_forward_type": "geglu",
        "hidden_act": "gelu",
        "model_max_length": 64,
        "model_type": "bert",
        "pad_token_id": 0,
        "position_embedding_type": "alibi",
        "use_cache": True,
    }


def slopes(heads: int) -> list[float]:
    """For 6 heads: those of 4 heads, then the first and third of 8 heads."""
    of_four = [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]
    of_eight = [2.0**-1, 2.0**-2, 2.0**-3, 2.0**-4, 2.0**-5, 2.0**-6, 2.0**-7, 2.0**-8]
    return {4: of_four, 6: [*of_four, of_eight[0], of_eight[2]], 8: of_eight}[heads]


class Jina(Reference):
    """The base variant; ``code`` switches to qk-post-norm, ``reglu`` to another gate."""

    def __init__(self, *, code: bool, reglu: bool = False) -> None:
        facts = config("jina-bert-v2-qk-post-norm" if code else "jina-bert-implementation")
        facts |= {"feed_forward_type": "reglu"} if reglu else {}
        self.act = torch.relu if reglu else gelu
        self.code = code
        d, f, v = facts["hidden_size"], facts["intermediate_size"], facts["vocab_size"]
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (v, d),
            "embeddings.token_type_embeddings.weight": (2, d),
            "pooler.dense.weight": (d, d),
            "pooler.dense.bias": (d,),
            "embeddings.LayerNorm.weight": (d,),
            "embeddings.LayerNorm.bias": (d,),
        }
        up, down = ("up_gated_layer", "down_layer") if code else ("gated_layers", "wo")
        norms = ["attention.output.LayerNorm"]
        norms += ["attention.self.layer_norm_q", "attention.self.layer_norm_k"] if code else ["mlp.layernorm"]
        norms += ["layer_norm_1", "layer_norm_2"] if code else []
        for i in range(facts["num_hidden_layers"]):
            n = f"encoder.layer.{i}"
            for x in ("self.query", "self.key", "self.value", "output.dense"):
                shapes |= {f"{n}.attention.{x}.weight": (d, d), f"{n}.attention.{x}.bias": (d,)}
            for norm in norms:
                shapes |= {f"{n}.{norm}.weight": (d,), f"{n}.{norm}.bias": (d,)}
            shapes |= {f"{n}.mlp.{up}.weight": (2 * f, d), f"{n}.mlp.{down}.weight": (d, f)}
            shapes |= {f"{n}.mlp.{down}.bias": (d,)}
        super().__init__(facts, shapes)

    def encode(self, ids: Tensor) -> Tensor:
        eps = self.config.layer_norm_eps
        x = (
            self["embeddings.word_embeddings.weight"][ids]
            + self["embeddings.token_type_embeddings.weight"][0]
        )
        x = self.layer_norm(x, "embeddings.LayerNorm", eps)
        for i in range(self.config.num_hidden_layers):
            n = f"encoder.layer.{i}"
            a = self.linear(self.attention(x, n), f"{n}.attention.output.dense")
            a = self.layer_norm(a + x, f"{n}.attention.output.LayerNorm", eps)
            x = self.code_mlp(x, a, n) if self.code else self.base_mlp(a, n)
        return x

    def attention(self, x: Tensor, n: str) -> Tensor:
        q = self.linear(x, f"{n}.attention.self.query")
        k = self.linear(x, f"{n}.attention.self.key")
        v = self.linear(x, f"{n}.attention.self.value")
        if self.code:
            q = self.layer_norm(q, f"{n}.attention.self.layer_norm_q", self.config.layer_norm_eps)
            k = self.layer_norm(k, f"{n}.attention.self.layer_norm_k", self.config.layer_norm_eps)
        heads = self.config.num_attention_heads
        size = x.shape[-1] // heads
        out = []
        for head, slope in enumerate(slopes(heads)):
            bias = torch.zeros(len(x), len(x), dtype=x.dtype)
            for i in range(len(x)):
                for j in range(len(x)):
                    bias[i, j] = -slope * abs(i - j)
            at = slice(head * size, (head + 1) * size)
            out.append(attend(q[:, at], k[:, at], v[:, at], bias))
        return torch.cat(out, -1)

    def base_mlp(self, a: Tensor, n: str) -> Tensor:
        f = self.config.intermediate_size
        both = self.linear(a, f"{n}.mlp.gated_layers")
        m = self.linear(self.act(both[:, :f]) * both[:, f:], f"{n}.mlp.wo")
        return self.layer_norm(m + a, f"{n}.mlp.layernorm", self.config.layer_norm_eps)

    def code_mlp(self, x: Tensor, a: Tensor, n: str) -> Tensor:
        f, eps = self.config.intermediate_size, self.config.layer_norm_eps
        b = self.layer_norm(x + a, f"{n}.layer_norm_1", eps)
        both = self.linear(b, f"{n}.mlp.up_gated_layer")
        m = self.linear(both[:, :f] * self.act(both[:, f:]), f"{n}.mlp.down_layer")
        return self.layer_norm(b + m, f"{n}.layer_norm_2", eps)
