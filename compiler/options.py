"""What is asked of a build, and the refusal of what can be refused without the checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bei.compiler.bundle import check_destination
from bei.compiler.engines.build import check_buildable, default_targets
from bei.compiler.engines.portability import NOT_PORTABLE, Portability
from bei.compiler.engines.tensorrt_table import BACKENDS
from bei.compiler.precision.policy import Mode
from bei.compiler.target import Target, parse_target
from bei.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """``targets`` empty: those this machine can build. ``max_length`` None: what the checkpoint serves.

    ``precision`` of FP16 engines, or a hand-written ``policy`` file; ``calibration`` a file of texts for the audit.
    ``card``: a GPU that the engines must fit. ``timing_cache``, ``portability``: see `TensorRtOptions`.
    ``token_embeddings``: of an embedding model, engines that give a vector for each token.
    """

    repo: str
    revision: str | None = None
    out: Path | None = None
    targets: tuple[str, ...] = ()
    max_length: int | None = None
    max_batch_tokens: int = 16384
    max_batch: int = 256
    layout: Literal["padded", "packed"] = "padded"
    precision: Mode = "auto"
    policy: Path | None = None
    calibration: Path | None = None
    offline: bool = False
    token: str | None = None
    card: str | None = None
    timing_cache: Path | None = None
    portability: Portability = NOT_PORTABLE
    token_embeddings: bool = False


def targets_of(options: BuildOptions) -> tuple[Target, ...]:
    """What is asked for, by default what can be built here. Raises BeiError, also for an option that would change none
    of their engines."""
    targets = tuple(parse_target(name) for name in options.targets) or default_targets()
    portable = [target for target in targets if target.backend == "tensorrt"]
    for target in portable or targets:
        options.portability.check(target)
    if all(target.device == "cpu" for target in targets):
        _refuse(_of_gpu_engines(options), "GPU engines", targets)
    if not any(_timed(target) for target in targets):
        _refuse({"--timing-cache": options.timing_cache is not None}, "TensorRT engines", targets)
    return targets


def check_request(options: BuildOptions) -> tuple[Target, ...]:
    """The targets of a build, and a refusal of all that can be refused without the checkpoint. Raises BeiError."""
    targets = targets_of(options)
    check_buildable(targets)
    if options.out is not None:
        check_destination(options.out)
    return targets


def _of_gpu_engines(options: BuildOptions) -> dict[str, bool]:
    """Options that say how they are built, and which of them is given: CPU engines are padded and fp32 always."""
    return {
        "--policy": options.policy is not None,
        "--calibration": options.calibration is not None,
        f"--precision {options.precision}": options.precision not in ("auto", "fp32"),
        f"--layout {options.layout}": options.layout != "padded",
    }


def _timed(target: Target) -> bool:
    """Whether its builder chooses kernels by timing them; TensorRT-RTX does not."""
    return any(row.timing_cache for row in BACKENDS.values() if row.name == target.backend)


def _refuse(given: Mapping[str, bool], subject: str, targets: Sequence[Target]) -> None:
    for name, is_given in given.items():
        if is_given:
            built = ", ".join(target.name for target in targets)
            raise InputError(
                f"{name}: is about {subject}, and none is built (targets: {built}). Add one with --target."
            )
