"""A torch model under the Hub's own tensor names, for architectures that transformers does not have.

Written from the published formulas and sharing nothing with the compiler: what is compared with these must not be able
to repeat a mistake of theirs. B batch, L length, D width, N heads, H features a head.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class HubModel(PreTrainedModel):
    """Subclasses give `shapes` and `states`; `from_pretrained` then reads the Hub's file as it is.

    A tensor that the file lacks is NaN, and with it every answer.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        for name, shape in self.shapes(config).items():
            path, _, leaf = name.rpartition(".")
            parameter = nn.Parameter(torch.full(shape, math.nan), requires_grad=False)
            self._module_at(path).register_parameter(leaf, parameter)
        self.post_init()

    @staticmethod
    def shapes(config: Any) -> dict[str, tuple[int, ...]]:
        """Every tensor of the encoder by its stored name."""
        raise NotImplementedError

    def states(self, ids_BL: Tensor, mask_BL: Tensor) -> list[Tensor]:
        """The residual stream [B, L, D] after the embeddings and after each layer; mask True on real tokens."""
        raise NotImplementedError

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **unused: Any) -> BaseModelOutput:
        """All hidden states, whether asked for or not."""
        states = self.states(input_ids, attention_mask.bool())
        return BaseModelOutput(last_hidden_state=states[-1], hidden_states=tuple(states))  # type: ignore[arg-type]

    def __getitem__(self, name: str) -> Tensor:
        return self.get_parameter(name)

    def _init_weights(self, module: nn.Module) -> None:
        for parameter in module.parameters(recurse=False):
            nn.init.constant_(parameter, math.nan)

    def _module_at(self, path: str) -> nn.Module:
        module: nn.Module = self
        for part in path.split("."):
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        return module

    def linear(self, x: Tensor, name: str, *, bias: bool = True) -> Tensor:
        y = x @ self[f"{name}.weight"].T
        return y + self[f"{name}.bias"] if bias else y

    def layer_norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = torch.sqrt((centred * centred).mean(-1, keepdim=True) + eps)
        return centred / spread * self[f"{name}.weight"] + self[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    """With the error function."""
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, L, N·H] → [B, N, L, H]"""
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask_BL: Tensor) -> Tensor:
    """[B, N, L, H] each, ``bias`` added to the scores [B, N, L, L] → [B, L, N·H]; keys that are padding are not seen."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
    scores = scores.masked_fill(~mask_BL[:, None, None, :], -math.inf)
    weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
    return (weights / weights.sum(-1, keepdim=True) @ v).transpose(1, 2).flatten(2)
