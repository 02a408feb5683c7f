"""The CUDA engine: encoder to launch plan, its kernels compiled for one SM. Needs Triton, but neither a GPU nor PyTorch."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from bei.adapters.config import EncoderConfig
from bei.adapters.head import Head
from bei.compiler.lowering.cuda_ops import Stream, emit_program
from bei.compiler.lowering.cuda_program import function_name
from bei.compiler.precision.policy import PLAIN, Policy
from bei.compiler.weights import Weight
from bei.cuda_plan import (
    PLAN_VERSION,
    DType,
    Function,
    Launch,
    Operand,
    Plan,
    encode_plan,
)
from bei.errors import EngineError, LoweringError
from bei.kernels.launch import Form, KernelLaunch

TYPES: dict[DType, str] = {"f16": "*fp16", "f32": "*fp32", "bf16": "*bf16", "i32": "*i32"}
STORED: dict[str, DType] = {"F16": "f16", "F32": "f32", "BF16": "bf16"}


@dataclass(frozen=True, kw_only=True, slots=True)
class CudaOptions:
    """``sm`` such as 90; ``stream``: how the residual stream is stored (None: fp16 after post-norms, else fp32)."""

    sm: int
    stream: Stream | None = None


def available() -> str | None:
    """None when this machine can build CUDA engines (it needs no GPU), else the reason."""
    return None if find_spec("triton") else 'Triton is not installed (pip install "bei[cuda]")'


def build(
    cfg: EncoderConfig,
    head: Head,
    weights: Mapping[str, Weight],
    options: CudaOptions,
    precision: Policy = PLAIN,
) -> bytes:
    """The encoded plan with its cubins. Raises EngineError, LoweringError."""
    reason = available()
    if reason is not None:
        raise EngineError(f"cuda-sm{options.sm}: cannot be built here: {reason}.")
    plan, kernels = lower(cfg, head, weights, options, precision)
    return encode_plan(compile_plan(plan, kernels))


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

    if precision.islands:
        raise LoweringError(
            f"cuda-sm{options.sm}: the precision policy has islands ({', '.join(list(precision.islands)[:5])}), which "
            "the CUDA engine does not compute. Use a TensorRT or ONNX Runtime target."
        )
    emitted = emit_program(cfg, head, weights, sm=options.sm, stream=options.stream, precision=precision)
    finished, program = emitted.finished, emitted.program
    conversions, converters = _conversions(
        {f"{part.dtype}:{t.dtype}" for t in program.tensors.values() for part in t.parts}, options.sm
    )
    used = {step.name for step in _weights(finished.steps)}
    plan = Plan(
        version=PLAN_VERSION,
        sm=options.sm,
        triton=triton.__version__,
        stream=emitted.stream,
        steps=finished.steps,
        functions={},
        buffers=finished.buffers,
        arena=finished.arena,
        weights={name: tensor for name, tensor in program.tensors.items() if name in used},
        conversions=conversions,
        constants=bytes(program.constants),
        inputs=finished.inputs,
        output=emitted.output,
        query_block=query_block(cfg.head_dim),
        position_pad=cfg.position_pad,
    )
    return plan, {**finished.kernels, **converters}


def _weights(steps: tuple[Any, ...]) -> list[Operand]:
    from bei.compiler.lowering.cuda_program import reads

    return [operand for step in steps for operand in reads(step) if operand.place == "weight"]


def _conversions(pairs: set[str], sm: int) -> tuple[dict[str, Launch], dict[str, KernelLaunch]]:
    """One launch per stored and device dtype."""
    from bei.kernels import convert

    steps, kernels = {}, {}
    for pair in sorted(pairs):
        stored, dtype = pair.split(":")
        types: dict[str, DType] = {"x": STORED[stored], "scale": "f32", "out": dtype}  # type: ignore[dict-item]
        forms = {key: Form(dtype=t, width=1, stride=1, aligned=key != "out") for key, t in types.items()}
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
    import msgspec

    with ThreadPoolExecutor() as pool:
        functions = dict(
            zip(kernels, pool.map(lambda how: compile_kernel(how, plan.sm), kernels.values()), strict=True)
        )
    return msgspec.structs.replace(plan, functions=functions)


def compile_kernel(how: KernelLaunch, sm: int) -> Function:
    """A cubin for one SM. Raises EngineError with the compiler's words."""
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
