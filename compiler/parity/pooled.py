"""A classifier on pooled tokens, as llama_bidirec has it: score(pooled) / temperature.

Source: NVIDIA-NeMo/Automodel, nemo_automodel/components/models/llama_bidirectional/model.py (Apache-2.0).
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from bei.compiler.parity.native import read_config, stored_tensor
from bei.errors import ParityError


class PooledClassifier(nn.Module):
    """``model`` is a transformers model without a head, ``score`` [C, D]."""

    def __init__(self, model: Any, score: Tensor, pooling: str, temperature: float) -> None:
        super().__init__()
        self.model, self.score = model, nn.Parameter(score, requires_grad=False)
        self.pooling, self.temperature = pooling, temperature

    @property
    def config(self) -> Any:
        return self.model.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False) -> Any:
        """Logits [B, C]."""
        out = self.model(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=output_hidden_states
        )
        mask = attention_mask.bool()
        texts = [x[real] for x, real in zip(out.last_hidden_state, mask, strict=True)]
        pooled = torch.stack([self.pool(x_LD) for x_LD in texts])
        logits = pooled @ self.score.T / self.temperature
        return SimpleNamespace(logits=logits, hidden_states=out.hidden_states)

    def pool(self, x_LD: Tensor) -> Tensor:
        match self.pooling:
            case "avg":
                return x_LD.mean(0)
            case "cls":
                return x_LD[0]
            case _:
                return x_LD[-1]


def load_pooled(folder: Path) -> PooledClassifier:
    """From a translated ``folder``, whose config.json keeps pooling and temperature. Raises ParityError without a
    score."""
    from transformers import AutoModel

    score = stored_tensor(folder, "score.weight")
    if score is None:
        raise ParityError(f"{folder}: no tensor score.weight. Is this checkpoint made for the task?")
    model = AutoModel.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    own = read_config(folder)
    return PooledClassifier(
        model, score.float(), own.get("pooling", "avg"), float(own.get("temperature", 1.0))
    )
