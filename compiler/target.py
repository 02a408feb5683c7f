"""Target names: a backend and, for GPUs, the SMs its engine runs on.

onnxruntime-cpu   onnxruntime-cuda   cuda-sm90   tensorrt-sm90   tensorrt-rtx-sm80+sm86+sm89+sm120
"""

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from bei.compiler.engines.tensorrt_table import BACKENDS
from bei.errors import EngineError

BackendName = Literal["onnxruntime", "tensorrt", "tensorrt-rtx", "cuda"]
DeviceName = Literal["cpu", "cuda"]

SMS: dict[BackendName, tuple[int, ...]] = {
    "cuda": (80, 86, 89, 90, 100, 103, 120, 121),
    "tensorrt": BACKENDS["tensorrt"].sms,
    "tensorrt-rtx": BACKENDS["tensorrt-rtx"].sms,
}
"""The SMs a backend can be asked for; TensorRT-RTX leaves the data-centre parts from SM90 on to TensorRT."""

_FIXED: dict[str, DeviceName] = {"onnxruntime-cpu": "cpu", "onnxruntime-cuda": "cuda"}
_EXAMPLES = (*_FIXED, "tensorrt-rtx-sm89", "tensorrt-rtx-sm80+sm86+sm89+sm120", "tensorrt-sm90", "cuda-sm90")


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """``sms`` such as (80, 89), ascending; empty where the backend does not compile for an SM."""

    backend: BackendName
    device: DeviceName
    sms: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The canonical spelling; also the engine's folder in a bundle."""
        if not self.sms:
            return f"{self.backend}-{self.device}"
        return f"{self.backend}-{'+'.join(f'sm{sm}' for sm in self.sms)}"

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """As CUDA writes them: SM89 is "8.9", SM120 "12.0"."""
        return tuple(f"{sm // 10}.{sm % 10}" for sm in self.sms)

    @property
    def needs_gpu(self) -> bool:
        """Whether the engine is built on the GPU that it serves."""
        return self.backend in BACKENDS and BACKENDS[self.backend].needs_gpu


def parse_target(name: str) -> Target:
    """Read a target name. Raises EngineError naming what is wrong and what there is."""
    if name in _FIXED:
        return Target(backend="onnxruntime", device=_FIXED[name])
    for backend in ("tensorrt-rtx", "tensorrt", "cuda"):
        if name == backend or re.fullmatch(rf"{backend}-sm.*", name):
            return Target(backend=backend, device="cuda", sms=_sms(name, backend))
    raise EngineError(f"target {name!r}: unknown.{_guess(name)} Known forms: {', '.join(_EXAMPLES)}.")


def _sms(name: str, backend: BackendName) -> tuple[int, ...]:
    """The SMs after the backend's name, ascending and once each."""
    known = ", ".join(f"sm{sm}" for sm in SMS[backend])
    listed = name[len(backend) + 1 :]
    if not listed:
        raise EngineError(
            f"target {name!r}: no SM given. Write for example {backend}-sm89; {backend} has {known}."
        )
    sms = set()
    for part in listed.split("+"):
        number = re.fullmatch(r"sm(\d+)", part)
        if number is None or int(number[1]) not in SMS[backend]:
            raise EngineError(
                f"target {name!r}: {backend} has no {part!r}; it has {known}.{_instead(backend, part)}"
            )
        sms.add(int(number[1]))
    if len(sms) > 1 and not (backend in BACKENDS and BACKENDS[backend].several_sms):
        raise EngineError(f"target {name!r}: a {backend} engine serves one SM. Ask for one target per SM.")
    return tuple(sorted(sms))


def _instead(backend: BackendName, part: str) -> str:
    """Backends that do have this SM."""
    others = [f"{b}-{part}" for b, sms in SMS.items() if b != backend and part in {f"sm{sm}" for sm in sms}]
    return f" Use {' or '.join(others)}." if others else ""


def _guess(name: str) -> str:
    close = difflib.get_close_matches(name, _EXAMPLES, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
