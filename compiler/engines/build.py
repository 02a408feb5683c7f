"""One engine per target: which backend builds it, and which targets this machine can build.

What writes graphs is imported where one is written: a bundle from the cache needs none of it, and a quarter of a second.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bei.adapters.config import EncoderConfig
from bei.adapters.head import Head
from bei.compiler.bundle import BundleWriter
from bei.compiler.engines import cuda, tensorrt
from bei.compiler.engines.portability import NOT_PORTABLE, Portability
from bei.compiler.engines.tensorrt import TensorRtOptions
from bei.compiler.lowering.cuda_options import CudaOptions
from bei.compiler.precision.policy import Policy
from bei.compiler.target import Target, parse_target
from bei.compiler.weights import Weights
from bei.errors import EngineError
from bei.manifest import EngineRecord, Limits

RTX_DEFAULT = "tensorrt-rtx-sm80+sm86+sm89+sm120"


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRequest:
    """What every backend builds from; ``precision`` is the policy of FP16 engines, ``timing_cache`` a file that TensorRT
    reads and updates, ``portability`` that of its plans."""

    cfg: EncoderConfig
    head: Head
    weights: Weights
    limits: Limits
    precision: Policy
    layout: Literal["padded", "packed"]
    timing_cache: Path | None = None
    portability: Portability = NOT_PORTABLE


def default_targets() -> tuple[Target, ...]:
    """ONNX Runtime on the CPU always; TensorRT-RTX for four SMs where its wheel is installed (no GPU needed)."""
    names = ["onnxruntime-cpu"]
    if tensorrt.available("tensorrt-rtx") is None:
        names.append(RTX_DEFAULT)
    return tuple(parse_target(name) for name in names)


def check_buildable(targets: tuple[Target, ...]) -> None:
    """Refuse, before anything is done, a target that this machine cannot build. Raises EngineError."""
    for target in targets:
        reason = why_not(target)
        if reason is not None:
            raise EngineError(f"target {target.name!r}: cannot be built here: {reason}.")


def why_not(target: Target) -> str | None:
    """None when this machine can build ``target``, else the reason."""
    if target.backend == "cuda":
        return cuda.available()
    if target.backend in ("tensorrt", "tensorrt-rtx"):
        return tensorrt.available(target.backend)
    return None


def build_engine(target: Target, request: EngineRequest, writer: BundleWriter) -> EngineRecord:
    """Build one engine into the bundle. Raises EngineError."""
    if target.backend == "onnxruntime":
        from bei.compiler.engines import onnxruntime

        return onnxruntime.build(
            target, request.cfg, request.head, request.weights, writer, request.precision
        )
    if target.backend == "cuda":
        plan = cuda.build(
            request.cfg, request.head, request.weights, CudaOptions(sm=target.sms[0]), request.precision
        )
        return cuda.write_engine(target, plan, writer, request.precision)
    return _build_tensorrt(target, request, writer)


def _build_tensorrt(target: Target, request: EngineRequest, writer: BundleWriter) -> EngineRecord:
    """A plan under ``engines/<target>/``; FP16 with FP32 accumulation and sums of the residual stream."""
    from bei.compiler.lowering.emit import emit
    from bei.compiler.lowering.policy import TENSORRT

    portability = request.portability if target.backend == "tensorrt" else NOT_PORTABLE
    graph = emit(
        request.cfg,
        request.head,
        request.weights,
        replace(TENSORRT, layout=request.layout),
        request.precision,
    )
    options = TensorRtOptions(
        target=target,
        layout=request.layout,
        max_batch=request.limits.max_batch,
        max_length=request.limits.max_length,
        max_batch_tokens=request.limits.max_batch_tokens,
        timing_cache=request.timing_cache,
        portability=portability,
    )
    name = f"engines/{target.name}/plan"
    path = writer.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    built = tensorrt.build(graph.serialize(), graph.weights, options, path)
    writer.add(name)
    assert target.backend in ("tensorrt", "tensorrt-rtx")
    return EngineRecord(
        target=target.name,
        backend=target.backend,
        device="cuda",
        layout=request.layout,
        precision=request.precision.name,
        path=name,
        inputs=graph.inputs,
        status="built, not executed",
        tool_versions=built.tool_versions,
        compute_capabilities=portability.runs_on(target).compute_capabilities,
        version_compatible=portability.version_compatible,
        profiles=built.profiles,
        evidence={
            **built.evidence,
            **({"portability_costs": portability.costs} if portability.wanted else {}),
        },
    )
