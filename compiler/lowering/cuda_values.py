"""Values of the launch plan's interpreter: in memory already, or waiting for the kernel that can take them along."""

from dataclasses import dataclass

from bei.adapters.config import NormKind, Rope
from bei.adapters.head import Pooling
from bei.compiler.ops import Index
from bei.cuda_plan import DType, Operand


@dataclass(slots=True)
class Stored:
    """A value in memory, in one precision or more."""

    parts: dict[DType, Operand]


@dataclass(slots=True)
class Embedding:
    """Table rows not yet gathered: canonical names by index; ``row``: the type table adds its first row to all."""

    tables: dict[Index, str]
    dim: int
    scale: float = 1.0
    row: bool = False
    stored: Stored | None = None


@dataclass(slots=True)
class Sum:
    """a + b, not yet added."""

    a: Operand
    b: Operand
    stored: Stored | None = None


@dataclass(frozen=True, slots=True)
class Norm:
    name: str
    kind: NormKind
    eps: float


@dataclass(frozen=True, slots=True)
class Heads:
    """A matrix seen as heads, its norm and rotation still to come."""

    x: "Value"
    head_dim: int
    norm: Norm | None = None
    rope: Rope | None = None


@dataclass(slots=True)
class Pooled:
    """A pooling not yet made, so that several can share a buffer."""

    x: Operand
    pooling: Pooling
    include_prompt: bool
    stored: Stored | None = None


Value = Stored | Embedding | Sum | Heads | Pooled
