"""What an adapter is: a config reader and a listing of weights as views into the checkpoint.

    yield "layers.0.q.weight", view("encoder.layer.0.attention.self.query.weight")
    yield "layers.0.k.weight", view("attn.Wqkv.weight", rows=(768, 1536))
    yield "layers.0.attn_norm.weight", derive(lambda w: 1 + w, "input_layernorm.weight")

A view copies nothing: engines read the bytes from the checkpoint's own file. `derive` materialises a small tensor
in float32. Names are the checkpoint's, without the prefix (`bert.`, `model.`) that was found in the file.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bei.adapters.config import Act, EncoderConfig
from bei.adapters.head import Pooling, Step
from bei.errors import UnsupportedConfig

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class View:
    """Rows [start, stop) of a stored tensor (all rows when None), read times ``scale``.

    ``otherwise`` is read where this tensor is not stored: for layouts that config.json does not tell apart.
    """

    name: str
    rows: tuple[int, int] | None = None
    scale: float = 1.0
    otherwise: "View | None" = None


@dataclass(frozen=True, slots=True)
class Derived:
    """``edit`` applied to whole stored tensors in float32; for small tensors only."""

    edit: Callable[..., Array]
    names: tuple[str, ...]


Source = View | Derived
Rows = Iterable[tuple[str, Source]]


def view(
    name: str,
    *,
    rows: tuple[int, int] | None = None,
    scale: float = 1.0,
    otherwise: View | None = None,
) -> View:
    """A stored tensor, or some of its rows."""
    return View(name, rows, scale, otherwise)


def derive(edit: Callable[..., Array], *names: str) -> Derived:
    """A small tensor computed from stored ones; ``edit`` takes and returns float32 arrays."""
    return Derived(edit, names)


def thirds(size: int) -> tuple[tuple[int, int], ...]:
    """Row ranges of a fused q/k/v weight whose parts have ``size`` rows each."""
    return (0, size), (size, 2 * size), (2 * size, 3 * size)


def halves(size: int) -> tuple[tuple[int, int], ...]:
    """Row ranges of a fused gate/up weight; which comes first differs by family."""
    return (0, size), (size, 2 * size)


def head_rows(*names: tuple[str, str]) -> tuple[tuple[str, View], ...]:
    """Rows of a head's linears, with their biases: (name in the head, name in the checkpoint)."""
    return tuple(
        (f"head.{ours}.{p}", view(f"{theirs}.{p}")) for p in ("weight", "bias") for ours, theirs in names
    )


class HfConfig(Mapping[str, Any]):
    """A checkpoint's config.json, read-only, that names itself in errors."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, key: str) -> Any:
        try:
            return self._values[key]
        except KeyError:
            raise UnsupportedConfig(
                f"{self.name}: config.json has no {key!r}, which the adapter needs. "
                "Check that the checkpoint is complete."
            ) from None

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or ``default`` where the key is absent or null."""
        value = self._values.get(key)
        return default if value is None else value

    @property
    def name(self) -> str:
        """model_type, for messages."""
        return str(self._values.get("model_type", "?"))

    def size(self, key: str, default: int | None = None) -> int:
        """A positive integer; raises UnsupportedConfig for anything else."""
        value = self[key] if default is None else self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UnsupportedConfig(f"{self.name}: {key}={value!r}, but the adapter needs a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; raises UnsupportedConfig for anything else."""
        value = self[key] if default is None else self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise UnsupportedConfig(f"{self.name}: {key}={value!r}, but the adapter needs a finite number")
        return float(value)

    def choice(self, key: str, known: Mapping[str, Any], default: str | None = None) -> Any:
        """``known[value]``; raises UnsupportedConfig naming what is known."""
        value = self[key] if default is None else self.get(key, default)
        if not isinstance(value, str) or value not in known:
            raise UnsupportedConfig(
                f"{self.name}: {key}={value!r}, but the adapter knows {', '.join(sorted(known))}"
            )
        return known[value]


def expect(hf: HfConfig, **facts: Any) -> None:
    """Refuse a config whose value differs from what the adapter was written for; an absent or null key passes.

    A tuple lists several accepted values.
    """
    for key, need in facts.items():
        got = hf.get(key)
        accepted = need if isinstance(need, tuple) else (need,)
        if got is not None and got not in accepted:
            wanted = " or ".join(repr(value) for value in accepted)
            raise UnsupportedConfig(f"{hf.name}: {key}={got!r}, but the adapter needs {wanted}")


ACTIVATIONS: dict[str, Act] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskHead:
    """A head stored beside the encoder: how it pools, its steps, and its rows (canonical `head.*` names)."""

    pooling: tuple[Pooling, ...]
    steps: tuple[Step, ...]
    weights: tuple[tuple[str, Source], ...]


HeadReader = Callable[[HfConfig], TaskHead]
Shapes = Mapping[str, tuple[int, ...]]
"""Stored tensors under their full names, and their shapes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """One architecture.

    model_types: values of config.json's `model_type` served.
    claims: decides where `model_type` alone does not (Jina's `bert`); None takes all.
    remote_code: what of a checkpoint's own code (`auto_map`) this adapter replaces, as globs of module.Class; any other
        is refused. code_repositories: where else than in the checkpoint itself that code may lie (owner/name).
    prefixes: wrappers a checkpoint may carry, tried in order.
    ignore: glob patterns (prefix removed) of tensors known not to affect the result.
    sequence_head, token_head: readers of `…ForSequenceClassification` and `…ForTokenClassification`.
    embedding_head: steps that the checkpoint's own class applies to every token after the encoder (a projection);
        they run on the pooled vector, so they must be linear without bias. Its second argument is what the
        checkpoint stores, for projections that config.json does not mention. Returns None where there are none.
    """

    name: str
    model_types: tuple[str, ...]
    config: Callable[[HfConfig], EncoderConfig]
    weights: Callable[[EncoderConfig], Rows]
    claims: Callable[[HfConfig], bool] | None = None
    remote_code: tuple[str, ...] = ()
    code_repositories: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)
    ignore: tuple[str, ...] = ()
    sequence_head: HeadReader | None = None
    token_head: HeadReader | None = None
    embedding_head: Callable[[HfConfig, Shapes], TaskHead | None] | None = None
