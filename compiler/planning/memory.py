"""Memory of every engine of a build, before it is built: on the device, on the building host, on the disk.

Weights are exact. Activation is exact for the CUDA engine (its own arena) and a formula for TensorRT, compared with
what the builder reports afterwards. What nobody can know without the card (the CUDA context, the library, kernels
compiled at load) is one assumed number, `RESERVE`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from bei.adapters.config import EncoderConfig
from bei.adapters.head import Head
from bei.cards import CARDS, Card
from bei.compiler.encoder import output_width
from bei.compiler.engines import cuda
from bei.compiler.engines.portability import NOT_PORTABLE, Portability
from bei.compiler.engines.tensorrt_profiles import shape_ranges
from bei.compiler.engines.tensorrt_table import backend
from bei.compiler.lowering.cuda_options import CudaOptions
from bei.compiler.planning.activation import activation_bytes
from bei.compiler.target import Target
from bei.compiler.weights import Weight
from bei.cuda_plan import ITEMSIZE
from bei.manifest import EngineRecord, Limits, Profile

RESERVE = 10**9
"""Bytes of a card that are never ours: context, library, kernels compiled at load. Assumed."""

HOST_FACTOR, HOST_BASE = 1.3, 1 << 30
"""A TensorRT-RTX build holds at most 1.3 times its plan and 1 GiB in memory (benchmarks/results/build_memory.md)."""

PARITY_BASE, PARITY_COPIES = 1 << 30, 2
"""A build with parity holds about 1 GiB and its weights in fp32 twice, in the reference and in the engine. Seen: 0.98 GB for
MiniLM (weights 0.09 GB) and 1.62 GB for a BERT-base (0.44 GB), with TensorRT-RTX 1.06 GB and 1.74 GB."""

TOLERANCE = 0.15
"""How far a planned activation may be from the reported one before a build warns."""

_KERNELS = 800_000  # bytes of a plan for the kernels of one layer in one profile
_IO = 4 * 6  # bytes a token of the inputs, at most


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """The model, the limits it is planned for, and the portability of TensorRT plans."""

    cfg: EncoderConfig
    head: Head
    weights: Mapping[str, Weight]
    limits: Limits
    portability: Portability = NOT_PORTABLE


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """One engine. Bytes throughout; ``device`` is the peak on a card, ``host`` that of the build, ``disk`` the plan's,
    ``scratch`` what lies beside it while it is built.

    ``source``: where the activation is from. ``budgets``: card → the largest tokens a call that fit it, None where
    not even one longest text fits; cards that the target does not run on are left out. ``largest_call``: tokens of the
    most and longest texts that the limits allow a call, whatever its budget. ``costs``: what was asked for and is not free.
    """

    target: str
    source: str
    weights: int
    profiles: tuple[Profile, ...]
    io: int
    device: int
    host: int
    disk: int
    scratch: int
    budgets: Mapping[str, int | None]
    largest_call: int
    costs: tuple[str, ...] = ()

    @property
    def activation(self) -> int:
        """Contexts of all profiles share one workspace: the largest counts."""
        return max(profile.activation_bytes or 0 for profile in self.profiles)


def plan_memory(target: Target, subject: Subject) -> MemoryPlan | None:
    """The plan of a GPU engine; None for the CPU's, whose weights are mapped and whose batches are small."""
    if target.device == "cpu" or target.backend == "onnxruntime":
        return None
    return _cuda(target, subject) if target.backend == "cuda" else _tensorrt(target, subject)


def _tensorrt(target: Target, subject: Subject) -> MemoryPlan:
    step = backend(target.backend).profile_step
    weights = tensorrt_weights(subject.weights)

    def profiles(limits: Limits) -> tuple[Profile, ...]:
        ranges = shape_ranges(limits.max_batch, limits.max_length, limits.max_batch_tokens, step)
        return tuple(
            Profile(
                max_batch=one.batch.high,
                max_length=one.sequence.high,
                max_tokens=one.tokens.high,
                activation_bytes=activation_bytes(subject.cfg, one.batch.high, one.sequence.high),
            )
            for one in ranges
        )

    chosen = profiles(subject.limits)
    disk = weights + _KERNELS * len(subject.cfg.layers) * len(chosen)
    host = round(HOST_FACTOR * disk) + HOST_BASE
    asked = subject.portability if target.backend == "tensorrt" else NOT_PORTABLE
    runs_on = asked.runs_on(target)
    plan = _planned(runs_on, subject, "formula", weights, profiles, disk, host)
    return replace(plan, target=target.name, costs=asked.costs, scratch=halved_weights(subject.weights))


def _cuda(target: Target, subject: Subject) -> MemoryPlan:
    """From the launch plan itself, lowered without compiling a kernel. Raises LoweringError."""
    plan, _ = cuda.lower(subject.cfg, subject.head, subject.weights, CudaOptions(sm=target.sms[0]))
    weights = sum(tensor.count * ITEMSIZE[tensor.dtype] for tensor in plan.weights.values())

    def profiles(limits: Limits) -> tuple[Profile, ...]:
        arena = plan.arena.get("tokens", 0) * limits.max_batch_tokens
        return (
            Profile(
                max_batch=limits.max_batch,
                max_length=limits.max_length,
                max_tokens=limits.max_batch_tokens,
                activation_bytes=arena + plan.arena.get("rows", 0) * limits.max_batch,
            ),
        )

    return _planned(target, subject, "launch plan", weights, profiles, len(plan.constants), HOST_BASE)


def _planned(
    target: Target,
    subject: Subject,
    source: str,
    weights: int,
    profiles: Callable[[Limits], tuple[Profile, ...]],
    disk: int,
    host: int,
) -> MemoryPlan:
    def io(limits: Limits) -> int:
        width = output_width(subject.cfg, subject.head)
        rows = limits.max_batch if subject.head.pooling else limits.max_batch_tokens
        return _IO * limits.max_batch_tokens + 4 * rows * width

    def device(limits: Limits) -> int:
        activation = max(profile.activation_bytes or 0 for profile in profiles(limits))
        return weights + activation + io(limits) + RESERVE

    limits = subject.limits
    return MemoryPlan(
        target=target.name,
        source=source,
        weights=weights,
        profiles=profiles(limits),
        io=io(limits),
        device=device(limits),
        host=host,
        disk=disk,
        scratch=0,
        budgets={card.name: _largest(limits, device, card) for card in CARDS if card.sm in target.sms},
        largest_call=limits.max_batch * limits.max_length,
    )


def _largest(limits: Limits, device: Callable[[Limits], int], card: Card) -> int | None:
    """The largest budget that fits, in whole thousands of 1024; at most what the largest batch can hold."""

    def fits(tokens: int) -> bool:
        return device(msgspec.structs.replace(limits, max_batch_tokens=tokens)) <= card.memory

    low, high = limits.max_length, max(limits.max_length, limits.max_batch * limits.max_length)
    if not fits(low):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    found = high if fits(high) else low
    return max(limits.max_length, found // 1024 * 1024)


def build_memory(plan: MemoryPlan | None, weights: Mapping[str, Weight], *, certified: bool) -> int:
    """Bytes of this machine's memory that building one engine takes at its peak: the builder's, or parity's."""
    engine = HOST_BASE if plan is None else plan.host
    numbers = sum(math.prod(weight.shape) for weight in weights.values())
    return max(engine, PARITY_BASE + PARITY_COPIES * 4 * numbers if certified else 0)


def tensorrt_weights(weights: Mapping[str, Weight]) -> int:
    """Bytes of the weights in an FP16 plan: products and the token table halved, norms and the head in FP32."""
    return sum(math.prod(weight.shape) * _itemsize(name) for name, weight in weights.items())


def halved_weights(weights: Mapping[str, Weight]) -> int:
    """Bytes of the weights that pass through a file: those stored in another type than the FP16 a plan holds, and those of
    which several are one product."""
    halved = [name for name in weights if _itemsize(name) == 2]
    passing = (weights[n] for n in halved if weights[n].dtype != "F16" or _joined(n, weights))
    return sum(2 * math.prod(weight.shape) for weight in passing)


def _joined(name: str, weights: Mapping[str, Weight]) -> bool:
    layer, part, kind = name.rsplit(".", 2) if name.startswith("layers.") else ("", "", "")
    return part in ("q", "k", "v") or (part in ("gate", "up") and f"{layer}.gate.{kind}" in weights)


def _itemsize(name: str) -> int:
    layer = name.startswith("layers.") and "norm" not in name and ".router." not in name
    return 2 if layer or name == "embed.tokens.weight" else 4


def compare(plan: MemoryPlan, engine: EngineRecord) -> dict[str, Any]:
    """Planned and reported bytes as plain JSON; ``within``: whether the largest activation was foreseen to 15 %."""
    reported = [profile.activation_bytes for profile in engine.profiles]
    known = [size for size in reported if size]
    ratio = plan.activation / max(known) if known else None
    return {
        "planned_activation_bytes": [profile.activation_bytes for profile in plan.profiles],
        "reported_activation_bytes": reported,
        "ratio": None if ratio is None else round(ratio, 3),
        "within": None if ratio is None else abs(ratio - 1) <= TOLERANCE,
        "planned_device_bytes": plan.device,
        "planned_plan_bytes": plan.disk,
    }
