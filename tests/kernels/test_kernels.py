"""Every kernel against its reference on its own shapes: Triton's interpreter on a CPU, the real build on a GPU."""

import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined, so before the imports below

from bei.kernels import (
    activate,
    add_norm,
    attention,
    convert,
    embed,
    expert,
    normalize,
    pool,
    rope,
)
from bei.kernels.launch import run

DEVICE = "cuda" if GPU else "cpu"
SM = 10 * torch.cuda.get_device_capability()[0] if GPU else 80
KERNELS: tuple[ModuleType, ...] = (
    activate,
    add_norm,
    attention,
    convert,
    embed,
    expert,
    normalize,
    pool,
    rope,
)
CASES = [
    pytest.param(kernel, shape, id=f"{kernel.__name__.rpartition('.')[2]}-{n}")
    for kernel in KERNELS
    for n, shape in enumerate(kernel.SHAPES)
]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with np.errstate(
        all="ignore"
    ):  # the interpreter is NumPy: exp overflows to the infinity that a GPU gives
        yield


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float16, 4e-3)], ids=["fp32", "fp16"]
)
@pytest.mark.parametrize(("kernel", "shape"), CASES)
def test_matches_its_reference(kernel: Any, shape: Any, dtype: torch.dtype, tolerance: float) -> None:
    sample = kernel.make_inputs(shape, device=DEVICE, dtype=dtype, sm=SM)
    expected = kernel.reference(**sample.operands, **sample.attrs)
    run(kernel, sample.operands, sample.sizes, sm=SM, **sample.attrs)
    for name in sample.writes:
        torch.testing.assert_close(
            sample.operands[name].float(), expected[name].float(), atol=tolerance, rtol=tolerance
        )
