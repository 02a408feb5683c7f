"""The CUDA engine: encoder to launch plan, its kernels compiled for one SM. Needs Triton and NVRTC, but neither a GPU nor
PyTorch."""
# mypy: disable-error-code="import-untyped"

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any, cast

import msgspec

from bei.adapters.config import EncoderConfig
from bei.adapters.head import Head
from bei.compiler.bundle import BundleWriter
from bei.compiler.engines import nvrtc
from bei.compiler.lowering.cuda_large import LEAST
from bei.compiler.lowering.cuda_ops import emit_program
from bei.compiler.lowering.cuda_options import CudaOptions
from bei.compiler.lowering.cuda_program import Finished, function_name
from bei.compiler.lowering.cuda_rows import waves_of
from bei.compiler.lowering.cuda_steps import reads
from bei.compiler.precision.policy import PLAIN, Policy
from bei.compiler.target import Target
from bei.compiler.weights import Weight
from bei.cuda_plan import (
    INPUTS,
    PLAN_VERSION,
    DType,
    Function,
    Launch,
    Operand,
    Plan,
    Schedule,
    Symbol,
    Waves,
    encode_plan,
)
from bei.errors import EngineError
from bei.kernels.launch import Form, KernelLaunch, Source
from bei.manifest import EngineRecord

TYPES: dict[DType, str] = {"f16": "*fp16", "f32": "*fp32", "bf16": "*bf16", "i32": "*i32"}
SHARED_KIB = {80: 163, 90: 227, 100: 227, 103: 227}
"""Shared memory a block can have, by SM; 99 KiB on all others."""

STORED: dict[str, DType] = {"F16": "f16", "F32": "f32", "BF16": "bf16"}


def available() -> str | None:
    """None when this machine can build CUDA engines (it needs no GPU), else the reason."""
    missing = [
        name for name, found in (("Triton", find_spec("triton")), ("NVRTC", nvrtc.find())) if not found
    ]
    return f'{" and ".join(missing)} not installed (pip install "bei[cuda]")' if missing else None


def build(
    cfg: EncoderConfig,
    head: Head,
    weights: Mapping[str, Weight],
    options: CudaOptions,
    precision: Policy = PLAIN,
) -> Plan:
    """The plan with its machine code. Raises EngineError, LoweringError."""
    reason = available()
    if reason is not None:
        raise EngineError(f"cuda-sm{options.sm}: cannot be built here: {reason}.")
    plan, kernels = lower(cfg, head, weights, options, precision)
    return compile_plan(plan, kernels)


def write_engine(target: Target, plan: Plan, writer: BundleWriter, precision: Policy) -> EngineRecord:
    """The plan as the bundle's engine of ``target``; its weights are the bundle's own."""
    name = f"engines/{target.name}/plan"
    writer.write(name, encode_plan(plan))
    return EngineRecord(
        target=target.name,
        backend="cuda",
        device="cuda",
        layout="packed",
        precision=precision.name,
        path=name,
        inputs=plan.inputs,
        status="built, not executed",
        tool_versions={"triton": plan.triton, "nvrtc": nvrtc.version()},
        compute_capabilities=target.compute_capabilities,
        evidence=evidence(plan),
    )


def evidence(plan: Plan) -> dict[str, Any]:
    """What the plan is made of, as plain JSON."""
    return {
        "schedules": [_schedule_facts(schedule) for schedule in plan.schedules],
        "cubin_bytes": sum(len(function.cubin) for function in plan.functions.values()),
        "arena_bytes_a_token": plan.arena.get("tokens", 0),
        "stream": plan.stream,
        "gelu": plan.gelu,
    }


def _schedule_facts(schedule: Schedule) -> dict[str, Any]:
    launches = Counter(step.op for step in schedule.steps if isinstance(step, Launch))
    return {
        "least_tokens": schedule.least,
        "whole_rows": schedule.waves is not None,
        "launches": dict(sorted(launches.items())),
        "products": len(schedule.steps) - launches.total(),
    }


def lower(
    cfg: EncoderConfig,
    head: Head,
    weights: Mapping[str, Weight],
    options: CudaOptions,
    precision: Policy = PLAIN,
) -> tuple[Plan, Mapping[str, KernelLaunch]]:
    """The plan without machine code, and the kernels it needs by name. Raises LoweringError."""
    import triton

    from bei.kernels.attention import query_block

    emitted = emit_program(cfg, head, weights, options, precision)
    program = emitted.program
    every: list[tuple[int, Waves | None, Finished]] = [(0, None, program.finish(emitted.output, options.sm))]
    if options.large:
        large, rows = (program.finish(emitted.output, options.sm, batches) for batches in ("large", "rows"))
        every.append((LEAST, None, large))
        if waves := waves_of(rows.steps):
            every.append((LEAST, waves, rows))
    conversions, converters = _conversions(
        {f"{part.dtype}:{t.dtype}" for t in program.tensors.values() for part in t.parts}, options.sm
    )
    finished = [each for _, _, each in every]
    steps = [step for each in finished for step in each.steps]
    used = {o.name for step in steps for o in reads(step) if o.place == "weight"}
    plan = Plan(
        version=PLAN_VERSION,
        sm=options.sm,
        triton=triton.__version__,
        stream=emitted.stream,
        gelu=options.gelu,
        schedules=tuple(
            Schedule(
                least=least,
                waves=waves,
                steps=each.steps,
                buffers=each.buffers,
                output=emitted.output,
            )
            for least, waves, each in every
        ),
        functions={},
        arena=_largest([each.arena for each in finished]),
        slots=program.slots,
        weights={name: tensor for name, tensor in program.tensors.items() if name in used},
        conversions=conversions,
        constants=bytes(program.constants),
        inputs=tuple(name for name in INPUTS if any(name in each.inputs for each in finished)),
        query_block=query_block(options.sm, cfg.head_dim),
        position_pad=cfg.position_pad,
    )
    kernels = {name: how for each in finished for name, how in each.kernels.items()}
    return plan, {**kernels, **converters}


def _largest(arenas: Sequence[Mapping[Symbol, int]]) -> dict[Symbol, int]:
    """Room for whichever schedule a batch has."""
    return {symbol: max(arena.get(symbol, 0) for arena in arenas) for arena in arenas for symbol in arena}


def _conversions(pairs: set[str], sm: int) -> tuple[dict[str, Launch], dict[str, KernelLaunch]]:
    """One launch per stored and device dtype."""
    from bei.kernels import convert

    steps, kernels = {}, {}
    for pair in sorted(pairs):
        stored, dtype = pair.split(":")
        types: dict[str, DType] = {"x": STORED[stored], "scale": "f32", "out": cast(DType, dtype)}
        forms = {key: Form(dtype=t, width=1, stride=1, aligned=key == "x") for key, t in types.items()}
        how = convert.plan(forms, sm=sm)
        name = function_name("convert", how)
        operands: dict[str, Operand | None] = {
            key: Operand(
                place="arena", name=key, rows="one" if key == "scale" else "rows", dtype=t, width=1, stride=1
            )
            for key, t in types.items()
        }
        steps[pair] = Launch(
            op="convert",
            attrs={},
            operands=operands,
            writes=("out",),
            function=name,
            grid=how.grid,
            sizes=how.sizes,
        )
        kernels[name] = how
    return steps, kernels


def compile_plan(plan: Plan, kernels: Mapping[str, KernelLaunch]) -> Plan:
    """The plan with every kernel compiled to machine code."""
    with ThreadPoolExecutor() as pool:
        functions = dict(
            zip(kernels, pool.map(lambda how: compile_kernel(how, plan.sm), kernels.values()), strict=True)
        )
    return msgspec.structs.replace(plan, functions=functions)


def compile_kernel(how: KernelLaunch, sm: int) -> Function:
    """A cubin for one SM. Raises EngineError with the compiler's words."""
    made = nvrtc.compile_source(how, sm) if isinstance(how.function, Source) else _compile_triton(how, sm)
    limit = SHARED_KIB.get(sm, 99) << 10
    if made.shared > limit:
        raise EngineError(
            f"cuda-sm{sm}: {made.symbol} needs {made.shared} bytes of shared memory, and a block of SM{sm} has {limit}. "
            "Use another target."
        )
    return made


def _compile_triton(how: KernelLaunch, sm: int) -> Function:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(how.function.arg_names)
    present = {name: dtype for name, dtype in how.pointers.items() if dtype is not None}
    signature: dict[str, str] = {}
    for name in names:
        if name in present:
            signature[name] = TYPES[present[name]]
        elif name in how.pointers or name in how.constants:
            signature[name] = "constexpr"
        else:
            signature[name] = "i32"
    constants: dict[Any, Any] = {(names.index(name),): value for name, value in how.constants.items()}
    constants |= {(names.index(name),): None for name in how.pointers if name not in present}
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]] for name in present if name not in how.unaligned
    }
    source = ASTSource(fn=how.function, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": how.warps, "num_stages": how.stages, "enable_fp_fusion": True}
    try:
        built = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    except Exception as error:  # Triton's compiler raises many classes without a common base
        raise EngineError(f"cuda-sm{sm}: {how.function.__name__} does not compile: {error}") from error
    scratch = sum(hasattr(built.metadata, f"{kind}_scratch_size") for kind in ("global", "profile"))
    return Function(
        cubin=built.asm["cubin"],
        symbol=built.metadata.name,
        threads=32 * how.warps,
        shared=built.metadata.shared,
        scratch=scratch,
    )
