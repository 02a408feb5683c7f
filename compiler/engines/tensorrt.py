"""TensorRT and TensorRT-RTX: a graph and mapped weights to a plan, with the evidence of what was built.

On the way in no weight is held in memory: the parser gets pointers into mapped files (see
`bei.compiler.engines.weight_memory`). On the way out the plan goes to the disk. Types in the graph are the only precision
control (networks are strongly typed).
"""

import importlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from bei.compiler.engines.behind import Write, written_behind
from bei.compiler.engines.graph_facts import GraphFacts, decomposable, read_graph
from bei.compiler.engines.heap import giving_back
from bei.compiler.engines.portability import LEVELS, NOT_PORTABLE, Portability
from bei.compiler.engines.tensorrt_evidence import evidence
from bei.compiler.engines.tensorrt_log import BuildLog, recorder
from bei.compiler.engines.tensorrt_profiles import ShapeRange, shape_ranges
from bei.compiler.engines.tensorrt_table import Backend, backend
from bei.compiler.engines.weight_memory import WeightMemory, weight_memory
from bei.compiler.mapped import not_resident, release
from bei.compiler.target import Target
from bei.compiler.weights import Weight
from bei.errors import EngineError
from bei.gpu import gpus
from bei.manifest import Profile

_NO_KERNEL = "not supported by a dedicated kernel"


class NoFusedKernel(EngineError):
    """The library has no single kernel for an attention of the graph and may not take it apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRtOptions:
    """One plan. ``max_batch`` rows, ``max_length`` tokens a row, ``max_batch_tokens`` tokens a call, padding included.

    ``allow_unfused`` accepts a plan in which some attention is several kernels with its scores in memory.
    ``timing_cache`` is read and updated where the library uses one; TensorRT-RTX times nothing and leaves it alone.
    """

    target: Target
    layout: Literal["padded", "packed"]
    max_batch: int
    max_length: int
    max_batch_tokens: int
    allow_unfused: bool = False
    timing_cache: Path | None = None
    portability: Portability = NOT_PORTABLE


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A plan on disk. ``evidence`` is plain JSON (see `bei.compiler.engines.tensorrt_evidence`)."""

    plan_path: Path
    profiles: tuple[Profile, ...]
    evidence: dict[str, Any]
    tool_versions: dict[str, str]


def available(name: str) -> str | None:
    """None when ``name`` ("tensorrt" or "tensorrt-rtx") can build here, else the reason it cannot. Never raises for
    a known name."""
    row = backend(name)
    try:
        trt = importlib.import_module(row.module)
        version = str(trt.__version__)
        numbers = tuple(int(part) for part in version.split(".")[:2])
    except (ImportError, OSError, RuntimeError, AttributeError, ValueError) as error:
        return f"{row.name} is not installed ({error}); install {row.install}"
    if numbers < row.oldest:
        return (
            f"{row.name} {version} is too old (need {'.'.join(map(str, row.oldest))}); install {row.install}"
        )
    if row.needs_gpu and isinstance(found := gpus(), str):
        return f"{row.name} builds on the GPU that will run the engine, and {found}"
    return None


def build(graph: bytes, weights: Mapping[str, Weight], options: TensorRtOptions, out: Path) -> Built:
    """Compile ``graph`` (an ONNX ModelProto without weight data) for ``options.target`` into the file ``out``.

    ``weights`` by initializer name, for every initializer with external data. An attention without a dedicated kernel
    is tried once more as decomposable. Raises EngineError (with the builder's own words) when the build fails, when
    it is not possible here, or when an attention lost its fusion; ``out`` is then not there.
    """
    row = backend(options.target.backend)
    _check(row, options)
    facts = read_graph(graph)
    trt: Any = importlib.import_module(row.module)
    started = time.perf_counter()
    retried = False
    try:
        memory = weight_memory(options.target.name, graph, weights, out.parent)
        with giving_back(), _interruptible() as interrupted:
            try:
                log = _compile(trt, row, memory, facts, options, out, interrupted)
            except NoFusedKernel:
                retried = True
                memory = replace(memory, graph=decomposable(memory.graph))
                log = _compile(trt, row, memory, facts, options, out, interrupted)
        proof = evidence(log, out, facts, len(_ranges(row, options)))
        proof |= {"decomposable_retry": retried, "build_seconds": round(time.perf_counter() - started, 2)}
        _check_fusion(options, proof)
    except BaseException:
        if out.is_file():
            out.unlink()
        raise
    return Built(
        plan_path=out,
        profiles=_profiles(_ranges(row, options), log.activation),
        evidence=proof,
        tool_versions={row.name: str(trt.__version__)},
    )


def _check(row: Backend, options: TensorRtOptions) -> None:
    """Refuse what cannot be built here before any work is done."""
    name = options.target.name
    options.portability.check(options.target)
    reason = available(row.name)
    if reason is not None:
        raise EngineError(f"{name}: cannot be built here: {reason}.")
    found = gpus() if row.needs_gpu else ()
    if not isinstance(found, str) and found and found[0].sm not in options.target.sms:
        raise EngineError(
            f"{name}: {row.name} builds for the GPU it runs on, which is {found[0].name} (SM{found[0].sm}). "
            f"Ask for {row.name}-sm{found[0].sm}, or build on the other GPU."
        )


def _ranges(row: Backend, options: TensorRtOptions) -> tuple[ShapeRange, ...]:
    return shape_ranges(options.max_batch, options.max_length, options.max_batch_tokens, row.profile_step)


def _profiles(ranges: Sequence[ShapeRange], activation: Sequence[int]) -> tuple[Profile, ...]:
    """The sizes with what the builder reserves for each."""
    reported = activation if len(activation) == len(ranges) else [None] * len(ranges)
    return tuple(
        Profile(
            max_batch=limits.batch.high,
            max_length=limits.sequence.high,
            max_tokens=limits.tokens.high,
            activation_bytes=size,
        )
        for limits, size in zip(ranges, reported, strict=True)
    )


def _check_fusion(options: TensorRtOptions, proof: Mapping[str, Any]) -> None:
    unfused = proof["unfused_attention"]
    if not unfused or options.allow_unfused:
        return
    tried = " A second build with TRT_decomposable was tried." if proof["decomposable_retry"] else ""
    more = ", …" if len(unfused) > 5 else ""
    raise EngineError(
        f"{options.target.name}: {len(unfused)} of {proof['attention_layers']} attentions were not fused into one "
        f"kernel: {', '.join(unfused[:5])}{more}.{tried} Build for another target, or allow unfused attention."
    )


def _compile(
    trt: Any,
    row: Backend,
    memory: WeightMemory,
    facts: GraphFacts,
    options: TensorRtOptions,
    out: Path,
    interrupted: threading.Event,
) -> BuildLog:
    """One build."""
    log = BuildLog()
    name = options.target.name
    logger = recorder(trt, log)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not _parse(parser, memory):
        raise EngineError(f"{name}: the parser refused the graph: {log.error()}")
    config = _config(trt, row, builder, facts, options)
    cache = _timing_cache(row, config, options)
    config.progress_monitor = _monitor(trt, interrupted)
    with not_resident(partial(release, memory.maps)):
        _serialise(trt, builder, network, config, log, name, out)
    if cache is not None and options.timing_cache is not None:
        options.timing_cache.write_bytes(bytes(cache.serialize()))
    return log


def _parse(parser: Any, memory: WeightMemory) -> bool:
    return bool(
        parser.load_model_proto(memory.graph)
        and all(parser.load_initializer(n, a.ctypes.data, a.nbytes) for n, a in memory.arrays.items())
        and parser.parse_model_proto()
    )


def _config(trt: Any, row: Backend, builder: Any, facts: GraphFacts, options: TensorRtOptions) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # makes the builder list its kernels
    if not row.needs_gpu:
        config.num_compute_capabilities = len(options.target.sms)
        for index, sm in enumerate(options.target.sms):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), index)
    _make_portable(trt, config, options.portability)
    for limits in _ranges(row, options):
        profile = builder.create_optimization_profile()
        for tensor, axes in facts.inputs.items():
            profile.set_shape(tensor, *limits.shapes(tensor, axes))
        config.add_optimization_profile(profile)
    return config


def _make_portable(trt: Any, config: Any, wanted: Portability) -> None:
    if wanted.hardware != "none":
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, LEVELS[wanted.hardware])
    if wanted.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)


def _timing_cache(row: Backend, config: Any, options: TensorRtOptions) -> Any | None:
    """The cache in use, filled from its file; None where the library has no use for one."""
    if not row.timing_cache or options.timing_cache is None:
        return None
    stored = options.timing_cache.read_bytes() if options.timing_cache.exists() else b""
    cache = config.create_timing_cache(stored)  # from another version or GPU: starts afresh, with a warning
    return cache if config.set_timing_cache(cache, False) else None


def _serialise(
    trt: Any, builder: Any, network: Any, config: Any, log: BuildLog, name: str, out: Path
) -> None:
    """Run the builder with the plan going to ``out``; turn what went wrong into one error."""
    try:
        with out.open("wb") as file, written_behind(file) as write:
            writer = _plan_writer(trt, write)
            done = builder.build_serialized_network_to_stream(network, config, writer)
    except OSError as error:
        raise EngineError(f"{name}: cannot write the plan to {out}: {error}.") from None
    if writer.failure is not None:
        raise EngineError(f"{name}: cannot write the plan to {out}: {writer.failure}. Free some space.")
    if any(_NO_KERNEL in error for error in log.errors):
        raise NoFusedKernel(f"{name}: {log.error()}")
    if not done:
        raise EngineError(f"{name}: the builder failed: {log.error()}")


def _plan_writer(trt: Any, write: Write) -> Any:
    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        """Keeps the first failure: the library neither passes Python's exceptions on nor stops at a short write."""

        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.failure: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                return write(data) if self.failure is None else 0
            except OSError as error:
                self.failure = error
                return 0

    return Writer()


def _monitor(trt: Any, interrupted: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Stops the build soon after Ctrl-C."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None: ...

        def step_complete(self, phase: str, step: int) -> bool:
            return not interrupted.is_set()

        def phase_finish(self, phase: str) -> None: ...

    return Monitor()


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C as an event, and as KeyboardInterrupt only at the end: inside a callback the library would swallow it."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def note(number: int, frame: FrameType | None) -> None:
        interrupted.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
        if interrupted.is_set():
            raise KeyboardInterrupt
