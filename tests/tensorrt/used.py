"""What this project uses of TensorRT's Python API, class by class. Run as a script it describes the full TensorRT's
published bindings, loaded over stand-ins for NVIDIA's libraries: classes and signatures are real, calls go nowhere.
"""

import json
import re
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

USED: dict[str, tuple[str, ...]] = {
    "Runtime": ("deserialize_cuda_engine", "engine_host_code_allowed"),
    "ICudaEngine": (
        "create_execution_context",
        "create_runtime_config",
        "get_tensor_profile_shape",
        "num_optimization_profiles",
    ),
    "IRuntimeConfig": ("set_execution_context_allocation_strategy",),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "IExecutionContext": (
        "execute_async_v3",
        "get_tensor_shape",
        "infer_shapes",
        "set_device_memory",
        "set_input_shape",
        "set_optimization_profile_async",
        "set_tensor_address",
        "update_device_memory_size_for_shapes",
    ),
    "ILogger": ("log",),
    "Builder": (
        "build_serialized_network_to_stream",
        "create_builder_config",
        "create_network",
        "create_optimization_profile",
    ),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "OnnxParser": ("load_initializer", "load_model_proto", "parse_model_proto"),
    "IBuilderConfig": (
        "add_optimization_profile",
        "create_timing_cache",
        "hardware_compatibility_level",
        "profiling_verbosity",
        "progress_monitor",
        "set_flag",
        "set_timing_cache",
    ),
    "ProfilingVerbosity": ("DETAILED",),
    "HardwareCompatibilityLevel": ("AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"),
    "BuilderFlag": ("VERSION_COMPATIBLE",),
    "IOptimizationProfile": ("set_shape",),
    "ITimingCache": ("serialize",),
    "IStreamWriter": ("write",),
    "IProgressMonitor": ("phase_finish", "phase_start", "step_complete"),
    "INetworkDefinition": (),
}
"""In both libraries."""

ONLY_RTX: dict[str, tuple[str, ...]] = {
    "Runtime": ("engine_header_size", "get_engine_validity"),
    "EngineInvalidityDiagnostics": (),
    "IRuntimeConfig": ("create_runtime_cache", "cuda_graph_strategy", "set_runtime_cache"),
    "CudaGraphStrategy": ("WHOLE_GRAPH_CAPTURE",),
    "IRuntimeCache": ("deserialize", "serialize"),
    "IBuilderConfig": ("num_compute_capabilities", "set_compute_capability"),
    "ComputeCapability": ("SM80", "SM86", "SM89", "SM120"),
}
"""In TensorRT-RTX alone: each use of one of them stands behind a row of the two tables."""


def describe(module: ModuleType) -> dict[str, Any]:
    """Version, and the signature of every attribute of both tables that is there."""
    found: dict[str, Any] = {"version": module.__version__, "classes": {}}
    for name in {*USED, *ONLY_RTX}:
        kind = getattr(module, name, None)
        wanted = (*USED.get(name, ()), *ONLY_RTX.get(name, ()))
        if kind is not None:
            found["classes"][name] = {a: signature(getattr(kind, a)) for a in wanted if hasattr(kind, a)}
    return found


def signature(attribute: Any) -> str:
    """The signatures in a binding's own words, without the module's name."""
    lines = (getattr(attribute, "__doc__", None) or "").splitlines()
    signatures = [line.strip() for line in lines if re.match(r"(\d+\. )?\w+\(.*\) -> ", line.strip())]
    return "\n".join(
        re.sub(r"\btensorrt(_rtx)?_bindings\.tensorrt(_rtx)?\.", "", line) for line in signatures
    )


def subclasses(trt: ModuleType) -> dict[str, Any]:
    """The builder's callbacks on this library's base classes, called as the library would."""
    import threading

    from bei.compiler.engines import tensorrt
    from bei.compiler.engines.tensorrt_log import BuildLog, recorder

    log, interrupted = BuildLog(), threading.Event()
    recorder(trt, log).log(trt.ILogger.ERROR, "an error")
    with tempfile.TemporaryFile() as file:
        written = tensorrt._plan_writer(trt, file.write).write(b"12345")
    monitor = tensorrt._monitor(trt, interrupted)
    before = monitor.step_complete("phase", 1)
    interrupted.set()
    return {"log": log.errors, "written": written, "goes_on": [before, monitor.step_complete("phase", 2)]}


if __name__ == "__main__":
    import tensorrt_bindings

    sys.path.insert(0, str(Path(__file__).parents[2]))
    print(json.dumps({**describe(tensorrt_bindings), "callbacks": subclasses(tensorrt_bindings)}))
