"""One upload of the checkpoint's weights: mapped file → pinned chunk → device, converted there to the engine's types."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bei.cuda_plan import ITEMSIZE, DType, Part, Plan
from bei.errors import EngineError
from bei.runtime.cuda.device import Bytes, Device

CHUNK = 32 << 20
ALIGNMENT = 256
STORED: dict[str, DType] = {"F16": "f16", "F32": "f32", "BF16": "bf16"}


@dataclass(slots=True)
class _Stage:
    """A pinned chunk with its device twin; ``mark`` says when its last use has been read."""

    host: Bytes
    address: int
    mark: Any = None


def upload(device: Device, plan: Plan, folder: Path) -> tuple[int, dict[str, int]]:
    """Every device tensor in one block: its address, and each tensor's. Raises EngineError."""
    offsets, size = {}, 0
    for name, tensor in plan.weights.items():
        offsets[name] = size
        size += -(-tensor.count * ITEMSIZE[tensor.dtype] // ALIGNMENT) * ALIGNMENT
    scales = sorted({part.scale for tensor in plan.weights.values() for part in tensor.parts})
    scales_at, size = size, size + 4 * max(1, len(scales))
    block = device.allocate(size)
    device.clear(block, size)
    largest = max(p.count * ITEMSIZE[STORED[p.dtype]] for t in plan.weights.values() for p in t.parts)
    chunk = max(4 * len(scales), min(CHUNK, largest))
    stages = [_Stage(device.pinned(chunk), device.allocate(chunk)) for _ in range(2)]
    turn = 0
    stages[0].host[: 4 * len(scales)] = np.array(scales, np.float32).view(np.uint8)
    device.upload(block + scales_at, stages[0].host[: 4 * len(scales)])
    stages[0].mark = device.mark()
    for name, tensor in plan.weights.items():
        for part in tensor.parts:
            scale_at = block + scales_at + 4 * scales.index(part.scale)
            for at, piece in _chunks(plan, part, folder):
                turn = 1 - turn
                target = block + offsets[name] + (part.at + at) * ITEMSIZE[tensor.dtype]
                _send(device, plan, stages[turn], piece, part, tensor.dtype, target, scale_at)
    for stage in stages:
        if stage.mark is not None:
            device.wait(stage.mark)
        device.release(stage.address)
    return block, {name: block + offset for name, offset in offsets.items()}


def _send(
    device: Device, plan: Plan, stage: _Stage, chunk: Bytes, part: Part, dtype: DType, target: int, scale: int
) -> None:
    if stage.mark is not None:
        device.wait(stage.mark)
    host = stage.host[: chunk.size]
    host[:] = chunk
    if STORED[part.dtype] == dtype and part.scale == 1.0:
        device.upload(target, host)
    else:
        device.upload(stage.address, host)
        count = chunk.size // ITEMSIZE[STORED[part.dtype]]
        step = plan.conversions[f"{part.dtype}:{dtype}"]
        device.launch(step, [stage.address, scale, target], {"rows": count})
    stage.mark = device.mark()


def _chunks(plan: Plan, part: Part, folder: Path) -> Iterator[tuple[int, Bytes]]:
    """(first value, stored bytes)"""
    item = ITEMSIZE[STORED[part.dtype]]
    nbytes = part.count * item
    source: Bytes
    if part.file is None:
        source = np.frombuffer(plan.constants, np.uint8, nbytes, part.offset)
    else:
        try:
            source = np.memmap(folder / part.file, np.uint8, "r", part.offset, (nbytes,))
        except (OSError, ValueError) as error:
            raise EngineError(f"{folder / part.file}: weights cannot be read ({error}).") from None
    for start in range(0, nbytes, CHUNK):
        yield start // item, source[start : start + CHUNK]
