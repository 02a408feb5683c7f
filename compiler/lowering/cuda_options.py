"""What can be chosen about a launch plan."""

from dataclasses import dataclass
from typing import Literal

Stream = Literal["f16", "f32"]
Gelu = Literal["erf", "tanh"]
Experts = Literal["grouped", "dense"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CudaOptions:
    """``sm`` such as 90; ``stream``: how the residual stream is stored (None: fp16 after post-norms and where the
    precision policy says so, else fp32).

    ``gelu`` "tanh" replaces erf-GELU by its tanh form (they differ by up to 5e-4), which cuBLASLt computes with the
    product before it; "erf" is what the model defines. ``fuse_activation``: activations and gates are computed with the
    product before them by a kernel of our own, instead of cuBLASLt and a kernel between products (None: on SM90, where
    that was measured to be faster). ``experts`` "dense": every expert computes every token; "grouped": only those chosen
    (None: grouped on SM90, where that was measured to be twice as fast, else dense).
    """

    sm: int
    stream: Stream | None = None
    gelu: Gelu = "erf"
    fuse_activation: bool | None = None
    experts: Experts | None = None

    @property
    def fuses(self) -> bool:
        """Whether activations are computed with their products."""
        return self.sm == 90 if self.fuse_activation is None else self.fuse_activation

    @property
    def large(self) -> bool:
        """Whether large batches have steps of their own."""
        return self.sm == 90 and self.fuses

    @property
    def groups(self) -> bool:
        """Whether tokens are sorted by expert."""
        return self.sm == 90 if self.experts is None else self.experts == "grouped"
