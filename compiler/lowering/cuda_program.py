"""A launch plan under construction: steps over virtual buffers, then only what is read, placed in an arena.

Operands are row-major matrices; virtual buffers are named b0, b1, … and get their place when the program is finished.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, cast

import msgspec
import numpy as np
import numpy.typing as npt

from bei.compiler.lowering.cuda_large import LEAST, Batches, own_products, sums_inside, turning
from bei.compiler.lowering.cuda_rows import norms_inside
from bei.compiler.lowering.cuda_steps import ALIGNMENT, forms_of, reads, writes
from bei.compiler.weights import Weight
from bei.cuda_plan import (
    INPUTS,
    ITEMSIZE,
    Buffer,
    DType,
    Few,
    Launch,
    Operand,
    Part,
    Size,
    Step,
    Symbol,
    WeightTensor,
)
from bei.errors import LoweringError
from bei.kernels.launch import KernelLaunch


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """Steps with functions, grids and placed buffers; ``kernels`` by function name, still to be compiled."""

    steps: tuple[Step, ...]
    kernels: Mapping[str, KernelLaunch]
    buffers: dict[str, Buffer]
    arena: dict[Symbol, int]
    inputs: tuple[str, ...]


@dataclass(slots=True)
class Program:
    """Collects what `CudaOps` emits. ``weights`` are the checkpoint's; ``tensors`` the device's, made of these and of
    ``constants``."""

    weights: Mapping[str, Weight]
    steps: list[Step] = field(default_factory=list)
    tensors: dict[str, WeightTensor] = field(default_factory=dict)
    constants: bytearray = field(default_factory=bytearray)
    slots: Size | None = None
    _buffers: dict[str, tuple[Symbol, int]] = field(default_factory=dict)

    def buffer(self, rows: Symbol, width: int, dtype: DType) -> Operand:
        """A new matrix in the arena."""
        name = f"b{len(self._buffers)}"
        row_bytes = -(-width * ITEMSIZE[dtype] // ALIGNMENT) * ALIGNMENT
        self._buffers[name] = (rows, row_bytes)
        stride = row_bytes // ITEMSIZE[dtype]
        return Operand(place="arena", name=name, rows=rows, dtype=dtype, width=width, stride=stride)

    def input(self, name: str) -> Operand:
        """One of the batch's int32 inputs."""
        rows, width = INPUTS[name]
        return Operand(place="input", name=name, rows=rows, dtype="i32", width=width, stride=width)

    def reserve_slots(self, slots: Size) -> None:
        """Say how many slots a batch has. Raises LoweringError where layers differ in it."""
        if self.slots not in (None, slots):
            raise LoweringError("cuda: mixtures of experts of different shapes. Use another target.")
        self.slots = slots

    def launch(
        self, op: str, attrs: dict[str, Any], operands: Mapping[str, Operand | None], writes: Sequence[str]
    ) -> None:
        """One kernel; ``operands`` in its parameter order."""
        self.steps.append(Launch(op=op, attrs=attrs, operands=dict(operands), writes=tuple(writes)))

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a weight."""
        return name in self.weights

    def vector(self, name: str) -> Operand | None:
        """A weight's values in fp32, or None where the checkpoint has none."""
        return self.matrix((name,), 1, "f32", flat=True) if self.has(name) else None

    def matrix(self, names: Sequence[str], width: int, dtype: DType, *, flat: bool = False) -> Operand:
        """Weights one below the other; a missing one is an error of the caller. ``flat``: all values in one row."""
        shapes = [self.weights[name].shape for name in names]
        count = sum(int(np.prod(shape)) for shape in shapes)
        key = f"{'+'.join(names)}:{dtype}"
        if key not in self.tensors:
            parts, at = [], 0
            for name, shape in zip(names, shapes, strict=True):
                parts.append(self._part(self.weights[name], at))
                at += int(np.prod(shape))
            self.tensors[key] = WeightTensor(dtype=dtype, count=count, parts=tuple(parts))
        return self._weight(key, dtype, count if flat else width)

    def biases(self, names: Sequence[str], outs: Sequence[int], dtype: DType) -> Operand | None:
        """The biases of fused linears in one row, 0 where one has none; None where none has."""
        if not any(self.has(f"{name}.bias") for name in names):
            return None
        key = f"{'+'.join(names)}.bias:{dtype}"
        if key not in self.tensors:
            starts = np.cumsum([0, *outs])
            parts = tuple(
                self._part(self.weights[f"{name}.bias"], int(at))
                for name, at in zip(names, starts, strict=False)
                if self.has(f"{name}.bias")
            )
            self.tensors[key] = WeightTensor(dtype=dtype, count=sum(outs), parts=parts)
        return self._weight(key, dtype, sum(outs))

    def constant(self, key: str, values: npt.NDArray[np.float32]) -> Operand:
        """A small fp32 matrix [rows, width] that the compiler computed."""
        if key not in self.tensors:
            part = self._constant_part(values, 0, 1.0)
            self.tensors[key] = WeightTensor(dtype="f32", count=values.size, parts=(part,))
        return self._weight(key, "f32", values.shape[-1])

    def _weight(self, key: str, dtype: DType, width: int) -> Operand:
        return Operand(place="weight", name=key, rows="one", dtype=dtype, width=width, stride=width)

    def _part(self, weight: Weight, at: int) -> Part:
        count = int(np.prod(weight.shape))
        if weight.data is not None:
            return self._constant_part(weight.data, at, weight.scale)
        stored = cast(Literal["F16", "F32", "BF16"], weight.dtype)
        return Part(
            file=weight.file, offset=weight.offset, dtype=stored, count=count, at=at, scale=weight.scale
        )

    def _constant_part(self, values: npt.NDArray[np.float32], at: int, scale: float) -> Part:
        offset = len(self.constants)
        self.constants += np.ascontiguousarray(values, np.float32).tobytes()
        return Part(file=None, offset=offset, dtype="F32", count=values.size, at=at, scale=scale)

    def finish(self, output: Operand, sm: int, batches: Batches = "all") -> Finished:
        """Drop what nothing reads, choose steps and kernels for these batches, place buffers. The program stays as it is."""
        steps = _needed(self.steps, output)
        if batches != "all":
            steps = own_products(steps, sm)
            steps = norms_inside(steps, sm) if batches == "rows" else steps
            steps = sums_inside(steps, sm)
            steps = turning(steps)
        kernels: dict[str, KernelLaunch] = {}
        ready: list[Step] = []
        for step in steps:
            if isinstance(step, Launch):
                step = _launched(step, sm, 0 if batches == "all" else LEAST, kernels)
            ready.append(step)
        buffers, arena = _place(ready, output, self._buffers)
        used = {o.name for step in ready for o in reads(step) if o.place == "input"}
        inputs = tuple(name for name in INPUTS if name in used)
        return Finished(steps=tuple(ready), kernels=kernels, buffers=buffers, arena=arena, inputs=inputs)


def _launched(step: Launch, sm: int, least: int, kernels: dict[str, KernelLaunch]) -> Launch:
    """With its functions and grids; what has to be compiled for them is added to ``kernels``."""
    module = import_module(f"bei.kernels.{step.op}")
    forms = forms_of(step.operands)

    def named(how: KernelLaunch) -> str:
        name = function_name(step.op, how)
        kernels[name] = how
        return name

    how: KernelLaunch = module.plan(forms, sm=sm, **step.attrs)
    few: Mapping[int, KernelLaunch] = module.few(forms, sm=sm, **step.attrs) if hasattr(module, "few") else {}
    few = {most: form for most, form in few.items() if most >= least}
    return msgspec.structs.replace(
        step,
        function=named(how),
        grid=how.grid,
        sizes=how.sizes,
        boxes=dict(how.boxes),
        few=tuple(
            Few(most=most, function=named(form), grid=form.grid, boxes=dict(form.boxes))
            for most, form in sorted(few.items())
        ),
    )


def function_name(op: str, how: KernelLaunch) -> str:
    """One name for one compiled kernel: the same types and constants give the same name."""
    facts = [dict(how.pointers), dict(how.constants), how.warps, how.stages, how.unaligned]
    return f"{op}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"


def _needed(steps: Sequence[Step], output: Operand) -> list[Step]:
    """Without outputs that no later step reads, and without steps that then have none."""
    wanted, kept = {output.name}, list[Step]()
    for step in reversed(steps):
        if isinstance(step, Launch):
            dead = {
                name for name in step.writes if (o := step.operands[name]) is None or o.name not in wanted
            }
            operands = {name: None if name in dead else o for name, o in step.operands.items()}
            live = tuple(name for name in step.writes if name not in dead)
            step = msgspec.structs.replace(step, operands=operands, writes=live)
        if any(o.name in wanted for o in writes(step)):
            wanted |= {o.name for o in reads(step) if o.place == "arena"}
            kept.append(step)
    return kept[::-1]


def _place(
    steps: Sequence[Step], output: Operand, sizes: Mapping[str, tuple[Symbol, int]]
) -> tuple[dict[str, Buffer], dict[Symbol, int]]:
    """First fit, by lifetime: a buffer's bytes are free again after the last step that reads them."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for at, step in enumerate(steps):
        for operand in (*reads(step), *writes(step)):
            if operand.place == "arena":
                first.setdefault(operand.name, at)
                last[operand.name] = at
    last[output.name] = len(steps)
    placed: dict[str, Buffer] = {}
    arena: dict[Symbol, int] = {}
    for name in sorted(first, key=lambda name: -sizes[name][1] * (last[name] - first[name] + 1)):
        rows, size = sizes[name]
        offset = 0
        for other in sorted(placed, key=lambda other: placed[other].offset):
            taken = placed[other]
            apart = last[other] < first[name] or last[name] < first[other] or taken.rows != rows
            if not apart and offset + size > taken.offset:
                offset = max(offset, taken.offset + taken.row_bytes)
        placed[name] = Buffer(rows=rows, offset=offset, row_bytes=size)
        arena[rows] = max(arena.get(rows, 0), offset + size)
    return placed, arena
