"""What every kernel file offers beside its reference: how to launch it on given operands.

A kernel module has ``reference(**operands, **attrs) -> dict`` in fp32 PyTorch, ``plan(forms, sm, **attrs) -> KernelLaunch``,
``SHAPES`` and ``make_inputs(shape, …)``. Its Triton function takes pointers, then int32 sizes, then constants; an
operand that is None compiles to nothing. PyTorch is imported only where it is used: compiling needs Triton alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bei.cuda_plan import Box, DType, Launch, Operand, Size, Symbol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A row-major matrix operand: ``width`` elements a row, rows ``stride`` elements apart.

    ``aligned``: its address is a multiple of 16 bytes, which lets a kernel load 16 bytes at once.
    """

    dtype: DType
    width: int
    stride: int
    aligned: bool = True


Forms = Mapping[str, Form | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A kernel in CUDA C++, which NVRTC compiles: ``text`` and the function in it; ``shared`` bytes a block asks for, blocks of
    a ``cluster``."""

    name: str
    text: str
    shared: int
    cluster: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelLaunch:
    """``pointers``: parameter → element type, None where absent, in the function's order; ``constants`` its constexprs
    (of a `Source`: macros).

    ``unaligned`` pointers need not be multiples of 16 bytes. ``boxes``: operands passed as tensor maps (a `Source` only).
    """

    function: Any
    pointers: Mapping[str, DType | None]
    sizes: tuple[Symbol, ...]
    constants: Mapping[str, int | float | bool]
    grid: tuple[Size, ...]
    warps: int = 4
    stages: int = 2
    unaligned: tuple[str, ...] = ()
    boxes: Mapping[str, Box] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Operands of one call, outputs allocated (``writes`` names them), with its sizes and attributes."""

    operands: "Mapping[str, Tensor | None]"
    writes: tuple[str, ...]
    sizes: Mapping[str, int]
    attrs: Mapping[str, Any]


def launch(forms: Forms, **fields: Any) -> KernelLaunch:
    """A `KernelLaunch` whose pointers are ``forms`` in order."""
    return KernelLaunch(
        pointers={name: form.dtype if form else None for name, form in forms.items()},
        unaligned=tuple(name for name, form in forms.items() if form and not form.aligned),
        **fields,
    )


def strides(forms: Forms, names: tuple[str, ...]) -> dict[str, int]:
    """``NAME_STRIDE`` constants; 0 for an absent operand."""
    return {f"{name.upper()}_STRIDE": f.stride if (f := forms[name]) else 0 for name in names}


def power_of_two(n: int) -> int:
    """The smallest power of two ≥ n: Triton's block sizes."""
    return 1 << max(0, n - 1).bit_length()


def form(tensor: "Tensor | None") -> Form | None:
    """The form of a PyTorch matrix, or of a vector as one row."""
    if tensor is None:
        return None
    dtypes: dict[str, DType] = {
        "torch.float16": "f16",
        "torch.float32": "f32",
        "torch.bfloat16": "bf16",
        "torch.int32": "i32",
    }
    stride = tensor.stride(0) if tensor.ndim == 2 else tensor.shape[-1]
    return Form(dtype=dtypes[str(tensor.dtype)], width=tensor.shape[-1], stride=stride)


def run(
    module: Any,
    tensors: "Mapping[str, Tensor | None]",
    sizes: Mapping[str, int],
    *,
    sm: int = 80,
    **attrs: Any,
) -> None:
    """Launch a kernel module on PyTorch tensors, outputs included: a CUDA device, or Triton's interpreter."""
    run_form(module.plan(forms(tensors), sm=sm, **attrs), tensors, sizes)


def forms(tensors: "Mapping[str, Tensor | None]") -> Forms:
    """Of every operand."""
    return {name: form(tensor) for name, tensor in tensors.items()}


def step(op: str, how: KernelLaunch, tensors: "Mapping[str, Tensor | None]", function: str) -> Launch:
    """The plan's step for a launch on PyTorch tensors: for `bei.runtime.cuda.gpu`, which runs what is compiled ahead of time."""

    def operand(name: str, one: Form) -> Operand:
        rows: Symbol = next((symbol for symbol in how.sizes if symbol != "work"), "tokens")
        return Operand(
            place="arena", name=name, rows=rows, dtype=one.dtype, width=one.width, stride=one.stride
        )

    return Launch(
        op=op,
        attrs={},
        operands={name: operand(name, one) if one else None for name, one in forms(tensors).items()},
        writes=(),
        function=function,
        grid=how.grid,
        sizes=how.sizes,
        boxes=dict(how.boxes),
    )


def run_form(how: KernelLaunch, tensors: "Mapping[str, Tensor | None]", sizes: Mapping[str, int]) -> None:
    """Launch one form of a Triton kernel, as `run`."""
    grid = tuple(size.of(sizes) for size in how.grid)
    numbers = [sizes[symbol] for symbol in how.sizes]
    pointers = [tensors[name] for name in how.pointers]
    how.function[grid](*pointers, *numbers, **how.constants, num_warps=how.warps, num_stages=how.stages)
