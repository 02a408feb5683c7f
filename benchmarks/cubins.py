"""Kernels compiled on one machine and timed on another, so that a GPU machine times what the pinned Triton makes.

python -m benchmarks.cubins FOLDER [--forms] [--families]    compiles what the benchmarks launch into a folder, a file a kernel
BEI_CUBINS=FOLDER python -m benchmarks.…                     takes machine code from there; what is missing is compiled in place

``--forms``: those of cuda_forms and cuda_attention too; ``--families``: those of cuda_families alone. Needs Triton, no GPU.
"""

import argparse
import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import msgspec
import numpy as np
import triton  # type: ignore[import-untyped]
from benchmarks.cuda_models import SHAPES, config_of
from benchmarks.cuda_shapes import CONFIGS, EMBED
from benchmarks.family_checkpoints import NAMES, head_of, shape_of

from bei.adapters.config import EncoderConfig
from bei.adapters.head import Head
from bei.adapters.registry import adapter_for
from bei.compiler.engines.cuda import compile_kernel, lower
from bei.compiler.lowering.cuda_options import CudaOptions
from bei.compiler.lowering.cuda_program import function_name
from bei.compiler.lowering.signature import signature
from bei.compiler.weights import Weight, Weights
from bei.cuda_plan import Function, Plan
from bei.errors import EngineError
from bei.kernels import hopper_attention
from bei.kernels.launch import KernelLaunch

SM = 90
CARRIED = "BEI_CUBINS"
BUCKETS = "embed.buckets.weight"


def function(how: KernelLaunch) -> Function:
    """Its machine code: carried along, or compiled now. Raises EngineError."""
    if (folder := os.environ.get(CARRIED)) and (file := Path(folder) / _name(how)).exists():
        return msgspec.msgpack.decode(file.read_bytes(), type=Function)
    return compile_kernel(how, SM)


def build(cfg: EncoderConfig, head: Head, weights: Weights, options: CudaOptions) -> Plan:
    """As `bei.compiler.engines.cuda.build`, with `function`'s machine code."""
    plan, kernels = lower(cfg, head, weights, options)
    with ThreadPoolExecutor() as pool:
        functions = dict(zip(kernels, pool.map(function, kernels.values()), strict=True))
    return msgspec.structs.replace(plan, functions=functions)


def origin() -> str:
    """Who compiled, in words."""
    folder = os.environ.get(CARRIED)
    version = (Path(folder) / "triton").read_text() if folder else triton.__version__
    return f"Triton {version}"


def _name(how: KernelLaunch) -> str:
    return function_name(getattr(how.function, "name", None) or how.function.__name__, how)


def store(how: KernelLaunch, folder: Path) -> None:
    """Compile into ``folder``; what does not compile is left to the place where it is asked for."""
    file = folder / _name(how)
    if not file.exists():
        try:
            file.write_bytes(msgspec.msgpack.encode(compile_kernel(how, SM)))
        except EngineError as error:
            print(f"{file.name}: {str(error)[:120]}", flush=True)


def shapes_only(cfg: EncoderConfig, names: Collection[str] | None, dtype: str) -> dict[str, Weight]:
    """Weights with a place and no values, enough to lower a plan: those in ``names``, or all that there may be."""
    needs = signature(cfg, EMBED)
    found = {
        name: Weight(name=name, shape=shape, dtype=dtype, folder=Path(), file="weights", offset=0)
        for name, shape in (needs.needed | needs.optional).items()
        if names is None or name in names
    }
    if (table := found.get(BUCKETS)) is not None:  # lowering reads it
        found[BUCKETS] = replace(table, dtype="F32", data=np.zeros(table.shape, np.float32))
    return found


def models() -> Iterator[tuple[EncoderConfig, Collection[str] | None, str]]:
    """Every model of the benchmarks: with all weights that there may be in fp16, and as transformers saves it."""
    for cfg in CONFIGS.values():
        yield cfg, None, "F16"
    for name in SHAPES:
        hf = config_of(name)
        adapter = adapter_for(hf)
        cfg = adapter.config(hf)
        yield cfg, {canonical for canonical, _ in adapter.weights(cfg)}, "F32"


def launches(*, with_forms: bool) -> Iterator[KernelLaunch]:
    """Of every benchmark's plans, and the forms of single kernels."""
    plain = CudaOptions(sm=SM)
    for cfg, names, dtype in models():
        weights = shapes_only(cfg, names, dtype)
        chosen = [plain, replace(plain, fuse_activation=False), replace(plain, stream="f16")]
        if cfg.act == "gelu" and not cfg.gated:
            chosen.append(replace(plain, gelu="tanh"))
        if any(layer.moe for layer in cfg.layers):
            chosen.append(replace(plain, experts="grouped"))
        for options in chosen:
            yield from lower(cfg, EMBED, weights, options)[1].values()
        with patch.object(hopper_attention, "tile", lambda **_: None):  # a variant of cuda_variants
            kernels = lower(cfg, EMBED, weights, plain)[1]
        yield from kernels.values()
    if with_forms:
        from benchmarks import cuda_attention, cuda_forms

        for how in (*cuda_forms.forms(), *cuda_attention.forms()):
            yield how.launch(how.sample("meta"))


def family_launches() -> Iterator[KernelLaunch]:
    """Of the plans of cuda_families."""
    for name in NAMES:
        cfg, names, dtype = shape_of(name)
        weights = shapes_only(cfg, names, dtype)
        yield from lower(cfg, head_of(cfg), weights, CudaOptions(sm=SM))[1].values()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--forms", action="store_true")
    parser.add_argument("--families", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / "triton").write_text(triton.__version__)
    every = family_launches() if args.families else launches(with_forms=args.forms)
    wanted = {_name(how): how for how in every}
    print(f"{len(wanted)} kernels", flush=True)
    for how in wanted.values():
        store(how, args.folder)


if __name__ == "__main__":
    main()
