"""What the builder says while it builds: its errors, its warnings, its memory, and the kernels it chose.

With detailed profiling the builder ends by printing one line per kernel, with the ONNX nodes the kernel computes.
That list is the proof, on a machine without a GPU, that attention was fused.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

FUSED_ATTENTION = "_gemm_mha"
"""Every fused attention kernel's name begins so."""

NOT_KERNELS = frozenset({"shape_call", "signal", "wait", "copy", "memset", "assert"})
"""Kinds of entries in the list that launch nothing (or only move a few bytes)."""

_ECHOES = ("ModelImporter.cpp:", "[checkMacros.cpp::catchCudaError")
"""The parser's trace of where it was, and complaints about the missing driver while it reports something else."""

_ACTIVATION = "Total Activation Memory: "
_LAYERS = "Layers:\n"
_NODE = "[ONNX Layer: "


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    """Weights as a kernel reads them; ``dtype`` is TensorRT's word (Half, Float, …)."""

    name: str
    dtype: str
    elements: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """One entry of the builder's list. ``function`` is the compiled function's name, ``nodes`` the ONNX nodes in it."""

    name: str
    kind: str
    function: str
    nodes: tuple[str, ...]
    constants: tuple[Constant, ...]

    @property
    def fused_attention(self) -> bool:
        """Whether this is a whole attention in one kernel."""
        return self.name.startswith(FUSED_ATTENTION)


@dataclass(slots=True)
class BuildLog:
    """Filled while a build runs. ``activation``: bytes, one number per profile, in the builder's order."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    activation: list[int] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)

    def read(self, level: int, message: str) -> None:
        """Take one message; ``level`` as TensorRT counts: 0 and 1 errors, 2 warning, 3 info, 4 verbose."""
        if level <= 1:
            _add(self.errors, message)
        elif level == 2:
            _add(self.warnings, message)
        elif message.startswith(_ACTIVATION):
            self.activation.append(int(message.removeprefix(_ACTIVATION).split()[0]))
        elif message.startswith(_LAYERS):
            self.kernels.extend(parse_kernels(message))

    def error(self) -> str:
        """The errors as one line, without those that only repeat or follow from another where there is one."""
        causes = [message for message in self.errors if not message.startswith(_ECHOES)]
        return " / ".join(causes or self.errors) or "it gave no reason"


def _add(messages: list[str], message: str) -> None:
    text = " ".join(message.split())
    if text and text not in messages:
        messages.append(text)


def recorder(trt: Any, log: BuildLog) -> Any:
    """An ILogger of the module ``trt`` that fills ``log``."""

    class Recorder(trt.ILogger):  # type: ignore[misc]
        """Keeps what BuildLog reads and drops the other tens of thousands of messages."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.read(int(severity), message)

    return Recorder()


def parse_kernels(text: str) -> list[Kernel]:
    """The kernels of a ``Layers:`` message, all profiles after one another."""
    return [_kernel(line) for line in text.splitlines() if line.startswith("Name: ")]


def _kernel(line: str) -> Kernel:
    return Kernel(
        name=_between(line, "Name: ", ", LayerType: "),
        kind=_between(line, ", LayerType: ", ", Inputs: "),
        function=_between(line, ", TacticName: ", ", StreamId: "),
        nodes=onnx_nodes(line.partition(", Metadata: ")[2]),
        constants=tuple(_constants(_between(line, ", Constants: [", "], Outputs: ["))),
    )


def onnx_nodes(metadata: str) -> tuple[str, ...]:
    """Node names out of ``[ONNX Layer: a]…[ONNX Layer: b]``."""
    return tuple(part.partition("]")[0] for part in metadata.split(_NODE)[1:])


def _constants(text: str) -> Iterable[Constant]:
    for part in text.split("{ Name: ")[1:]:
        dims = _between(part, ", Dimensions: [", "]")
        elements = 1
        for dim in dims.split(","):
            elements *= int(dim or 1)
        yield Constant(
            name=part.partition(",")[0], dtype=_between(part, ", Datatype: ", ","), elements=elements
        )


def _between(text: str, before: str, after: str) -> str:
    return text.partition(before)[2].partition(after)[0]


def first_profile(kernels: Sequence[Kernel], profiles: int) -> Sequence[Kernel]:
    """Each profile has the same kernels in the same order; these are the first one's."""
    return kernels[: len(kernels) // profiles]


def fused_nodes(kernels: Iterable[Kernel], profiles: int) -> frozenset[str]:
    """ONNX nodes that are inside a fused attention kernel in every profile."""
    times: dict[str, int] = {}
    for kernel in kernels:
        for node in kernel.nodes if kernel.fused_attention else ():
            times[node] = times.get(node, 0) + 1
    return frozenset(node for node, count in times.items() if count >= profiles)


def kernels_per_layer(kernels: Sequence[Kernel]) -> list[int]:
    """Kernels from each fused attention to the next one: the cost of a layer, free of what runs once a batch."""
    launched = [kernel for kernel in kernels if kernel.kind not in NOT_KERNELS]
    at = [index for index, kernel in enumerate(launched) if kernel.fused_attention]
    return [later - earlier for earlier, later in pairwise(at)]


def weight_elements(kernels: Iterable[Kernel]) -> dict[str, int]:
    """Elements of the weights by dtype, each constant counted once."""
    seen = {constant.name: constant for kernel in kernels for constant in kernel.constants}
    total: dict[str, int] = {}
    for constant in seen.values():
        total[constant.dtype] = total.get(constant.dtype, 0) + constant.elements
    return dict(sorted(total.items()))
