"""What can be chosen about a launch plan."""

from dataclasses import dataclass
from typing import Literal

Stream = Literal["f16", "f32"]
Gelu = Literal["erf", "tanh"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CudaOptions:
    """``sm`` such as 90; ``stream``: how the residual stream is stored (None: fp16 after post-norms, else fp32).

    ``gelu`` "tanh" replaces erf-GELU by its tanh form (they differ by up to 5e-4), which cuBLASLt computes with the
    product before it; "erf" is what the model defines. ``fuse_activation``: activations and gates are computed with the
    product before them by a kernel of our own, instead of cuBLASLt and a kernel between products. ``fuse_residual``: the
    product before a residual sum adds the stream itself. ``experts`` "dense": every expert computes every
    token, "grouped": only those chosen (measured slower on an H100, 45.3 against 20.4 ms: see benchmarks/results/h100).
    """

    sm: int
    stream: Stream | None = None
    gelu: Gelu = "erf"
    fuse_activation: bool = False
    fuse_residual: bool = False
    experts: Literal["grouped", "dense"] = "dense"
