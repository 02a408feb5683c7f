"""Every kernel against its reference on its own shapes: Triton's interpreter on a CPU, the real build on a GPU."""

import os
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined, so before the imports below

from tests.kernels.compiled import launch_compiled

from bei.kernels import (
    activate,
    add_norm,
    attention,
    combine,
    convert,
    embed,
    expert,
    linear,
    linear_norm,
    normalize,
    place,
    pool,
    rope,
    route,
)
from bei.kernels.launch import Sample, Source, forms, run, run_form

DEVICE = "cuda" if GPU else "cpu"
SM = 10 * torch.cuda.get_device_capability()[0] if GPU else 80
KERNELS: tuple[ModuleType, ...] = (
    activate,
    add_norm,
    attention,
    combine,
    convert,
    embed,
    expert,
    linear,
    normalize,
    place,
    pool,
    rope,
    route,
)
HOPPER: tuple[ModuleType, ...] = (linear_norm,) if GPU and SM == 90 else ()
"""Kernels that run nowhere else."""
CASES = [
    pytest.param(kernel, shape, id=f"{kernel.__name__.rpartition('.')[2]}-{n}")
    for kernel in (*KERNELS, *HOPPER)
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
    ("dtype", "tolerance"),
    [(torch.float32, 2e-5), (torch.float16, 4e-3), (torch.bfloat16, 4e-2)],
    ids=["fp32", "fp16", "bf16"],
)
@pytest.mark.parametrize(("kernel", "shape"), CASES)
def test_matches_its_reference(kernel: Any, shape: Any, dtype: torch.dtype, tolerance: float) -> None:
    if not GPU and dtype == torch.bfloat16 and kernel in (attention, linear):
        pytest.skip("Triton's interpreter multiplies the bits of bf16, not its values, in a dot")
    if kernel in HOPPER and dtype == torch.float32:
        pytest.skip("of 16-bit values only")
    check(kernel, shape, dtype, tolerance, SM)


def test_gelu_is_right_where_it_is_small() -> None:
    x = torch.linspace(-6, 6, 4001, device=DEVICE)[None]
    out = torch.full_like(x, torch.nan)
    run(activate, {"x": x, "up": None, "out": out}, {"tokens": 1}, act="gelu", rows="tokens")
    expected = x.double() * torch.special.ndtr(x.double())
    assert float((out - expected).abs().max()) < 1e-6
    assert float((out / expected - 1)[x.abs() > 1e-3].abs().max()) < 2e-5


@pytest.mark.skipif(GPU and SM != 90, reason="forms for small batches are SM90's")
@pytest.mark.parametrize("shape", linear.SHAPES)
def test_forms_for_small_batches(shape: Any) -> None:
    sample = linear.make_inputs(shape, device=DEVICE, dtype=torch.float16, sm=90)
    small = linear.few(forms(sample.operands), sm=90, **sample.attrs)
    assert len({how.grid for how in small.values()}) == len(small) > 1
    expected = linear.reference(**sample.operands, **sample.attrs)  # type: ignore[arg-type]
    for how in small.values():
        operands = {**sample.operands, "out": torch.zeros_like(sample.operands["out"])}  # type: ignore[arg-type]
        again = replace(sample, operands=operands)
        run_form(how, again.operands, again.sizes)
        compare(expected, again, 4e-3)


def check(kernel: Any, shape: Any, dtype: torch.dtype, tolerance: float, sm: int) -> None:
    sample = kernel.make_inputs(shape, device=DEVICE, dtype=dtype, sm=sm)
    expected = kernel.reference(**sample.operands, **sample.attrs)
    how = kernel.plan(forms(sample.operands), sm=sm, **sample.attrs)
    if isinstance(how.function, Source):
        launch_compiled(how, sample)
    else:
        run_form(how, sample.operands, sample.sizes)
    compare(expected, sample, tolerance)


def compare(expected: dict[str, torch.Tensor], sample: Sample, tolerance: float) -> None:
    for name in sample.writes:
        got = sample.operands[name]
        assert got is not None
        if got.is_floating_point():
            within = max(tolerance, 4e-2) if got.dtype == torch.bfloat16 else tolerance
            torch.testing.assert_close(got.float(), expected[name].float(), atol=within, rtol=within)
        else:
            assert torch.equal(got, expected[name].to(got.dtype))
