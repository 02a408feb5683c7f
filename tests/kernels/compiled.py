"""Kernels in CUDA C++ on a GPU: compiled ahead of time and launched by the driver, as an engine does it."""

from functools import cache

import torch

from bei.compiler.engines.cuda import compile_kernel
from bei.kernels.launch import KernelLaunch, Sample, step
from bei.runtime.cuda.gpu import Gpu

SM = 90


@cache
def gpu() -> Gpu:
    torch.cuda.current_device()  # the context
    return Gpu("test")


def launch_compiled(how: KernelLaunch, sample: Sample) -> None:
    """Run on the sample's operands, and wait."""
    function = compile_kernel(how, SM)
    gpu().activate()
    gpu().load({"kernel": function})
    launch = step("kernel", how, sample.operands, "kernel")
    addresses = [tensor.data_ptr() for tensor in sample.operands.values() if tensor is not None]
    torch.cuda.synchronize()
    gpu().launch(launch, addresses, sample.sizes)
    gpu().wait(gpu().mark())
