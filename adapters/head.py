"""What follows the encoder: pooling, then steps on the pooled (or, for token tasks, per-token) vectors.

All of it is read from the checkpoint's own files, and all of it runs in fp32 inside the graph.
"""

from dataclasses import dataclass
from typing import Literal

from bei.adapters.config import Act
from bei.manifest import Task

Pooling = Literal["cls", "mean", "max", "mean_sqrt_len", "weighted_mean", "last"]

POOLINGS: tuple[Pooling, ...] = ("cls", "max", "mean", "mean_sqrt_len", "weighted_mean", "last")
"""In the order in which sentence-transformers concatenates several."""

LINEAR_POOLINGS: frozenset[Pooling] = frozenset({"cls", "mean", "weighted_mean", "last"})
"""Poolings that commute with a linear map without bias."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dense:
    """``act(x · weightᵀ + bias)``, plus x when ``residual``; the bias is used where the checkpoint has one.

    Where the widths differ, the residual is x · residual.weightᵀ.
    """

    name: str
    out: int
    act: Act = "identity"
    residual: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerNorm:
    """Layer normalisation with a weight and, where the checkpoint has one, a bias."""

    name: str
    eps: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Activate:
    """An activation by itself."""

    act: Act


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Multiply by a constant (a reranker's 1 / temperature)."""

    factor: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalize:
    """x / max(‖x‖₂, 1e-12), as torch.nn.functional.normalize."""


Step = Dense | LayerNorm | Activate | Scale | Normalize


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """``pooling`` is empty for per-token results; several poolings are concatenated.

    ``include_prompt`` False keeps a prompt's tokens out of the pooling. ``labels`` in logit order.
    """

    task: Task
    pooling: tuple[Pooling, ...]
    steps: tuple[Step, ...]
    include_prompt: bool = True
    labels: tuple[str, ...] = ()
    problem_type: str | None = None
    matryoshka: tuple[int, ...] = ()

    @property
    def output(self) -> str:
        """The name of a graph's output."""
        names: dict[Task, str] = {"embed": "sentence_embedding", "embed-tokens": "token_embeddings"}
        return names.get(self.task, "logits")


TOKENS = Head(task="embed-tokens", pooling=(), steps=())
"""No head at all: the encoder's last hidden state, a vector for each token."""
