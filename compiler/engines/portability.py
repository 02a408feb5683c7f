"""What lets a TensorRT plan leave the GPU model and the version it was built with, and what that costs.

TensorRT alone has it: TensorRT-RTX compiles for every SM of its target, and only the version that wrote its plans reads
them.
"""

from dataclasses import dataclass
from typing import Literal

from bei.compiler.target import SMS, Target
from bei.errors import EngineError

Hardware = Literal["none", "same-sm", "ampere+"]
LEVELS: dict[Hardware, str] = {
    "none": "NONE",
    "same-sm": "SAME_COMPUTE_CAPABILITY",
    "ampere+": "AMPERE_PLUS",
}
"""Our names of TensorRT's HardwareCompatibilityLevel."""

HARDWARE_COST: dict[Hardware, str] = {
    "same-sm": "it can be slower: kernels that suit one GPU model alone are left out, cuBLAS and cuDNN too",
    "ampere+": "it can be slower: kernels get 48 KiB of shared memory, fewer kernels and fusions are tried, cuBLAS and "
    "cuDNN are left out",
}
VERSION_COST = (
    "it can be slower and is larger: it keeps to the operators of TensorRT's lean runtime and holds a copy of that. "
    "The copy is code that runs where the plan is loaded: load it only from bundles you trust"
)

_JETSON = frozenset({87, 110})
_AMPERE = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class Portability:
    """``hardware``: which GPUs besides the model it is built on run the plan. ``version_compatible``: whether later
    versions of TensorRT read it."""

    hardware: Hardware = "none"
    version_compatible: bool = False

    @property
    def wanted(self) -> bool:
        """Whether anything is asked for."""
        return self != NOT_PORTABLE

    @property
    def costs(self) -> tuple[str, ...]:
        """One sentence for each thing asked for."""
        costs = []
        if self.hardware != "none":
            costs.append(f"hardware compatibility {self.hardware}: {HARDWARE_COST[self.hardware]}")
        if self.version_compatible:
            costs.append(f"version compatibility: {VERSION_COST}")
        return tuple(costs)

    def runs_on(self, target: Target) -> Target:
        """``target`` with every SM that a plan built for it runs on."""
        if self.hardware != "ampere+":
            return target
        sms = tuple(sm for sm in SMS[target.backend] if sm >= _AMPERE and sm not in _JETSON)
        return Target(backend=target.backend, device=target.device, sms=sms)

    def check(self, target: Target) -> None:
        """Raises EngineError where ``target`` cannot have it."""
        if not self.wanted:
            return
        if target.backend != "tensorrt":
            raise EngineError(
                f"{target.name}: hardware and version compatibility are TensorRT's (got a {target.backend} target). "
                "Leave them out; a TensorRT-RTX plan serves every SM its target lists."
            )
        (sm,) = target.sms
        if self.hardware == "ampere+" and (sm < _AMPERE or sm in _JETSON):
            raise EngineError(
                f"{target.name}: hardware compatibility ampere+ needs a plan built on SM80 or later, Jetson excepted "
                f"(got SM{sm}). Use same-sm, or build on another GPU."
            )


NOT_PORTABLE = Portability()
