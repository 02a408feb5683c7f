"""The simplest possible torch, one text at a time, for architectures that transformers cannot run.

Written from the published formulas and sharing nothing with the project's code: what is compared with these must not
be able to repeat a mistake of theirs. `compiler/parity/references` has faster ones, on which users' parity checks rely:
written apart from these, and tested against them (tests/compiler/parity/test_native.py). L length, D width, N heads, H features a head.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn


class Reference(nn.Module):
    """Tensors under the Hub's names, read as ``self["name"]``; subclasses define `encode`.

    Shaped like a transformers model where the tests need it: `config`, `save_pretrained`, `last_hidden_state`.
    """

    def __init__(self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.facts = dict(config)
        self.config = SimpleNamespace(**config)
        for name, shape in shapes.items():
            one = len(shape) == 1 and name.endswith("weight")
            start = torch.ones(shape) if one else torch.zeros(shape)
            self.register_parameter(name.replace(".", "/"), nn.Parameter(start, requires_grad=False))

    def __getitem__(self, name: str) -> Tensor:
        """In float64: what differs from a reference is then ours alone."""
        return self.get_parameter(name.replace(".", "/")).double()

    def encode(self, ids: Tensor) -> Tensor:
        """[L] token ids of one text, no padding → [L, D] float64."""
        raise NotImplementedError

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """Text by text, float32; zeros in the padding (which is on the right)."""
        rows = [
            self.encode(ids[mask.bool()]).float() for ids, mask in zip(input_ids, attention_mask, strict=True)
        ]
        return SimpleNamespace(last_hidden_state=nn.utils.rnn.pad_sequence(rows, batch_first=True))

    def save_pretrained(self, folder: str | Path) -> None:
        """config.json and model.safetensors, as the Hub has them."""
        tensors = {name.replace("/", "."): value.data for name, value in self.named_parameters()}
        save_file(tensors, Path(folder) / "model.safetensors")
        (Path(folder) / "config.json").write_text(json.dumps(self.facts))

    def linear(self, x: Tensor, name: str) -> Tensor:
        y = x @ self[f"{name}.weight"].T
        return y + self[f"{name}.bias"] if self.has(f"{name}.bias") else y

    def layer_norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = torch.sqrt((centred * centred).mean(-1, keepdim=True) + eps)
        return centred / spread * self[f"{name}.weight"] + self[f"{name}.bias"]

    def has(self, name: str) -> bool:
        return name.replace(".", "/") in dict(self.named_parameters())


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """[L, H] each, bias [L, L] → [L, H]: one head."""
    scores = q @ k.T / math.sqrt(q.shape[-1]) + bias
    weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
    return weights / weights.sum(-1, keepdim=True) @ v


def rotate(x: Tensor, frequencies: Tensor) -> Tensor:
    """[L, H] by position: the pair (i, i + H/2) turns by position · frequency i."""
    half = x.shape[-1] // 2
    out = torch.empty_like(x)
    for position in range(len(x)):
        for i in range(half):
            angle = position * frequencies[i]
            a, b = x[position, i], x[position, i + half]
            out[position, i] = a * torch.cos(angle) - b * torch.sin(angle)
            out[position, i + half] = b * torch.cos(angle) + a * torch.sin(angle)
    return out
