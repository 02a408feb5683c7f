"""What can be read from a finished plan without a GPU: in which precision every product accumulates.

A plan holds the compiler's program as text and, for kernels compiled at load, their CUDA source. Both are searched
with ``bytes.find``: weights make regular expressions over a plan quadratic. Nothing found means "not readable".
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bei.compiler.engines.tensorrt_log import onnx_nodes

Accumulation = Literal["fp32", "fp16", "library's choice"]

_CHUNK = 1 << 22  # small enough for the heap to use again
_OVERLAP = 1 << 18  # an entry and its context lie within it
_GEMM = b"fully_connected={ name="
_TRAITS = b"fmha::Kernel_traits_v2"
_GEMM_CODES: dict[bytes, Accumulation] = {b"0": "library's choice", b"2": "fp32"}
_TRAIT_NAMES: dict[bytes, Accumulation] = {
    b"_fp32_traits": "fp32",
    b"_bf16_traits": "fp32",
    b"_fp16_traits": "fp16",
}


@dataclass(slots=True)
class PlanFacts:
    """``gemms``: ONNX node inside the product → accumulation. ``attentions``: kernel function → that of q·kᵀ and of
    weights·v, over all SMs in the plan."""

    gemms: dict[str, Accumulation] = field(default_factory=dict)
    attentions: dict[str, set[tuple[Accumulation, Accumulation]]] = field(default_factory=dict)


def read_plan(path: Path) -> PlanFacts:
    """Search the plan once, in pieces."""
    facts = PlanFacts()
    for piece in _pieces(path):
        _each(piece, _GEMM, lambda entry: _gemm(entry, facts))
        _each(piece, _TRAITS, lambda entry: _attention(entry, facts))
    return facts


def _pieces(path: Path) -> Iterator[bytes]:
    """Overlapping pieces; what is found twice is only noted twice."""
    with path.open("rb") as file:
        tail = b""
        while chunk := file.read(_CHUNK):
            piece = tail + chunk
            yield piece
            tail = piece[-_OVERLAP:]


def _each(piece: bytes, what: bytes, read: Callable[[bytes], None]) -> None:
    at = piece.find(what)
    while at >= 0:
        read(piece[at : at + _OVERLAP])
        at = piece.find(what, at + 1)


def _gemm(entry: bytes, facts: PlanFacts) -> None:
    line = _until(entry, b"\n")
    code = _until(line.partition(b" accumulation_type=")[2], b" ")
    nodes = _until(line.partition(b' layers="')[2], b'"').decode(errors="replace")
    if code in _GEMM_CODES:
        facts.gemms.update(dict.fromkeys(onnx_nodes(nodes), _GEMM_CODES[code]))


def _attention(entry: bytes, facts: PlanFacts) -> None:
    arguments = _until(entry.partition(b"<")[2], b">").split(b",")
    found = [
        _TRAIT_NAMES[end] for name in arguments[:2] for end in _TRAIT_NAMES if name.strip().endswith(end)
    ]
    function = _until(entry.partition(b"__global__ void ")[2], b"(").decode(errors="replace")
    if len(found) == 2 and function:
        facts.attentions.setdefault(function, set()).add((found[0], found[1]))


def _until(text: bytes, end: bytes) -> bytes:
    """What stands before ``end``; nothing when the piece stops before it (the next piece holds it whole)."""
    before, found, _ = text.partition(end)
    return before if found else b""
