"""What differs between TensorRT and TensorRT-RTX. One module drives both; every difference is a row here.

Version strings: TensorRT-RTX counts from 1.0, TensorRT is at 11; they are never compared with each other.
"""

from dataclasses import dataclass
from typing import Literal

from bei.errors import EngineError

TensorRtName = Literal["tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """One of the two libraries.

    ``module`` is imported, ``install`` names what provides it. ``needs_gpu``: an engine is built on the GPU that
    will run it, for the SM it finds there; otherwise SMs are listed in the builder configuration.
    ``sms``: what it compiles for. ``several_sms``: whether one plan may hold more than one.
    ``profile_step``: how far apart in length profiles may be (tactics are chosen per profile only where the builder
    times them; elsewhere fewer will do). ``timing_cache``: whether one saves time. ``oldest``: the first version whose API is used.
    """

    name: TensorRtName
    module: str
    install: str
    needs_gpu: bool
    sms: tuple[int, ...]
    several_sms: bool
    profile_step: float
    timing_cache: bool
    oldest: tuple[int, int]


BACKENDS: dict[TensorRtName, Backend] = {
    "tensorrt": Backend(
        name="tensorrt",
        module="tensorrt",
        install="NVIDIA's tensorrt package",
        needs_gpu=True,
        sms=(75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121),
        several_sms=False,
        profile_step=4,
        timing_cache=True,
        oldest=(10, 15),
    ),
    "tensorrt-rtx": Backend(
        name="tensorrt-rtx",
        module="tensorrt_rtx",
        install="bei[tensorrt-rtx]",
        needs_gpu=False,
        sms=(75, 80, 86, 89, 120, 121),
        several_sms=True,
        profile_step=6,
        timing_cache=False,
        oldest=(1, 5),
    ),
}


def backend(name: str) -> Backend:
    """The row of a library; raises EngineError for any other backend."""
    if name == "tensorrt":
        return BACKENDS["tensorrt"]
    if name == "tensorrt-rtx":
        return BACKENDS["tensorrt-rtx"]
    raise EngineError(f"backend {name!r}: not a TensorRT backend (need {' or '.join(BACKENDS)}).")
