"""From a checkpoint to a bundle: the compile path, step by step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

import bei
from bei.adapters.head import Normalize
from bei.adapters.registry import adapter_for
from bei.cards import card
from bei.compiler.bundle import BundleWriter, writing
from bei.compiler.checkpoint.checkpoint import Checkpoint, open_checkpoint, source_record
from bei.compiler.checkpoint.load import LoadedModel, load_model
from bei.compiler.checkpoint.tokenizer import TokenizerFiles, read_tokenizer
from bei.compiler.encoder import output_width
from bei.compiler.engines.build import EngineRequest, build_engine
from bei.compiler.engines.tensorrt_table import BACKENDS
from bei.compiler.lowering.signature import signature
from bei.compiler.options import BuildOptions, check_request, targets_of
from bei.compiler.planning.gate import check_card, check_disk, check_host, free_memory
from bei.compiler.planning.memory import MemoryPlan, Subject, build_memory, compare, plan_memory
from bei.compiler.precision.policy import PLAIN, Policy
from bei.compiler.progress import QUIET, Progress
from bei.compiler.target import Target
from bei.compiler.weights import check_finite, check_shapes
from bei.errors import CheckpointError
from bei.manifest import (
    SCHEMA_VERSION,
    EngineRecord,
    HeadSpec,
    Limits,
    Manifest,
    ParityRecord,
    Source,
)

TOKENIZER_FILE = "tokenizer.json"
SOURCE_FOLDER = "source"
"""Where the checkpoint's small files lie in a bundle, so that the reference model can be rebuilt from it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A checkpoint understood: everything engines are built from."""

    checkpoint: Checkpoint
    adapter: str
    loaded: LoadedModel
    tokenizer: TokenizerFiles


Certify = Callable[[Path, Path], Manifest]
"""Measures a complete, not yet renamed bundle against its checkpoint (bundle folder, checkpoint folder), records the
verdict in the bundle and returns the new manifest."""


def open_source(options: BuildOptions, progress: Progress = QUIET) -> Checkpoint:
    """The checkpoint that the options name, fetched where needed. Raises CheckpointError."""
    return open_checkpoint(
        options.repo,
        revision=options.revision,
        offline=options.offline,
        token=options.token,
        progress=progress,
    )


def read_model(options: BuildOptions, progress: Progress = QUIET) -> Model:
    """What is wrong with a checkpoint's files and shapes is refused here; no weight is looked at."""
    return _understood(open_source(options, progress), options)


def _understood(checkpoint: Checkpoint, options: BuildOptions) -> Model:
    adapter = adapter_for(checkpoint.config)
    loaded = load_model(checkpoint, adapter, values=False)
    if options.token_embeddings:
        loaded = loaded.of_tokens(checkpoint.name)
    needs = signature(loaded.cfg, loaded.head)
    check_shapes(checkpoint.name, loaded.weights, needs.needed, needs.optional)
    return Model(
        checkpoint=checkpoint,
        adapter=adapter.name,
        loaded=loaded,
        tokenizer=read_tokenizer(checkpoint, loaded.head_files, loaded.cfg),
    )


def plan_build(options: BuildOptions, progress: Progress = QUIET) -> tuple[list[MemoryPlan], list[Target]]:
    """The memory of every engine asked for, whether it can be built here or not, and the targets that have no plan.
    Raises BeiError, also for a named card that the build does not fit."""
    targets = targets_of(options)
    model = read_model(options, progress)
    plans = _memory(model, options, targets)
    planned = {plan.target for plan in plans}
    return plans, [target for target in targets if target.name not in planned]


def host_memory(options: BuildOptions, *, certified: bool) -> dict[str, int]:
    """By target, what building it takes of this machine's memory, parity included where it is ``certified``. Raises
    BeiError."""
    model = read_model(options)
    subject, found = _subject(model, options), {}
    for target in targets_of(options):
        plan = plan_memory(target, subject) if target.backend in BACKENDS else None
        found[target.name] = build_memory(plan, subject.weights, certified=certified)
    return found


def compile_bundle(
    options: BuildOptions, *, progress: Progress = QUIET, certify: Certify | None = None
) -> tuple[Path, Manifest]:
    """Checkpoint → bundle on disk. ``certify`` None skips parity (every verdict is then "not run").

    Raises BeiError, and then leaves nothing behind.
    """
    check_request(options)
    return compile_checkpoint(open_source(options, progress), options, progress=progress, certify=certify)


def compile_checkpoint(
    checkpoint: Checkpoint,
    options: BuildOptions,
    *,
    source: Source | None = None,
    progress: Progress = QUIET,
    certify: Certify | None = None,
) -> tuple[Path, Manifest]:
    """`compile_bundle` from where the checkpoint is open; ``source`` where it is hashed already."""
    targets = targets_of(options)
    model = _understood(checkpoint, options)
    out = destination(checkpoint, options)
    memory = _memory(model, options, targets)
    check_host(memory, free_memory())
    check_finite(
        checkpoint.name, model.loaded.weights
    )  # reads every byte: after all that can be refused without
    if source is None:
        source = source_record(checkpoint, progress)
    check_disk(memory, sum(record.size for record in source.files.values()), out.absolute().parent)
    with writing(out) as writer:
        _write_sources(model, source, writer, progress)
        precision = _precision(model, options, targets, progress, search=certify is not None)
        engines = _build_engines(model, options, targets, precision, writer, progress)
        engines = _compared(engines, memory)
        manifest = _manifest(model, source, options, engines, precision, writer)
        writer.finish(manifest)
        if certify is not None:
            manifest = certify(writer.folder, checkpoint.folder)
    return out, manifest


def destination(checkpoint: Checkpoint, options: BuildOptions) -> Path:
    """Where the bundle goes."""
    return options.out or Path(f"{bundle_name(checkpoint, options)}.bundle")


def _memory(model: Model, options: BuildOptions, targets: Sequence[Target]) -> list[MemoryPlan]:
    """Plans of the GPU engines, checked against the card that was named."""
    subject = _subject(model, options)
    planned = [plan for target in targets if (plan := plan_memory(target, subject)) is not None]
    if options.card is not None:
        check_card(planned, card(options.card))
    return planned


def _subject(model: Model, options: BuildOptions) -> Subject:
    loaded = model.loaded
    return Subject(
        cfg=loaded.cfg,
        head=loaded.head,
        weights=loaded.weights,
        limits=_limits(model, options),
        portability=options.portability,
    )


def _compared(engines: Sequence[EngineRecord], plans: Sequence[MemoryPlan]) -> tuple[EngineRecord, ...]:
    """Engines with what was planned for them beside what their builder reported."""
    planned = {plan.target: plan for plan in plans}
    return tuple(
        msgspec.structs.replace(
            engine, evidence={**engine.evidence, "memory": compare(planned[engine.target], engine)}
        )
        if engine.target in planned and engine.profiles
        else engine
        for engine in engines
    )


def _write_sources(model: Model, source: Source, writer: BundleWriter, progress: Progress) -> None:
    """Weights byte-identical at their own paths, every other source file under ``source/``, and the tokenizer."""
    used = {weight.file for weight in model.loaded.weights.values() if weight.file is not None}
    files = source.files
    with progress.stage("copying", sum(record.size for record in files.values())) as stage:
        for name, record in files.items():
            where = name if name in used else f"{SOURCE_FOLDER}/{name}"
            writer.copy(where, model.checkpoint.folder / name, record)
            stage.advance(record.size)
    writer.write(TOKENIZER_FILE, model.tokenizer.json.encode())


def _build_engines(
    model: Model,
    options: BuildOptions,
    targets: Sequence[Target],
    precision: Policy | None,
    writer: BundleWriter,
    progress: Progress,
) -> tuple[EngineRecord, ...]:
    request = EngineRequest(
        cfg=model.loaded.cfg,
        head=model.loaded.head,
        weights=model.loaded.weights,
        limits=_limits(model, options),
        precision=precision or PLAIN,
        layout=options.layout,
        timing_cache=options.timing_cache,
        portability=options.portability,
    )
    records = []
    with progress.stage("building", len(targets), unit="items") as stage:
        for target in targets:
            records.append(build_engine(target, request, writer))
            stage.advance(1)
    return tuple(records)


def _precision(
    model: Model, options: BuildOptions, targets: Sequence[Target], progress: Progress, *, search: bool
) -> Policy | None:
    """The policy of FP16 engines; None where none is built. Islands are searched for when parity runs as well
    (both need torch)."""
    if all(target.device == "cpu" for target in targets):
        return None
    # here, because a bundle from the cache needs none of it
    from bei.compiler.precision.calibration import calibration_batches, token_budget
    from bei.compiler.precision.decide import decide

    loaded, tokenizer = model.loaded, model.tokenizer
    with progress.stage("precision", None, unit="items"):
        batches = calibration_batches(
            tokenizer.json,
            loaded.head.task,
            tokenizer.max_length,
            tokenizer.spec.pad_id,
            texts=options.calibration,
            tokens=token_budget(loaded.weights),
        )
        return decide(
            loaded.cfg,
            loaded.head,
            loaded.weights,
            batches,
            mode=options.precision,
            file=options.policy,
            search=search,
        )


def _limits(model: Model, options: BuildOptions) -> Limits:
    """The checkpoint's limits, narrowed by the options; a longer length than it serves is refused."""
    serves = model.tokenizer.max_length
    wanted = options.max_length or serves
    if wanted > serves:
        raise CheckpointError(
            f"{model.checkpoint.name}: --max-length {wanted} is more than the checkpoint serves ({serves} tokens). "
            f"Ask for at most {serves}."
        )
    return Limits(
        max_length=wanted,
        max_batch_tokens=max(options.max_batch_tokens, wanted),
        max_batch=options.max_batch,
    )


def _manifest(
    model: Model,
    source: Source,
    options: BuildOptions,
    engines: tuple[EngineRecord, ...],
    precision: Policy | None,
    writer: BundleWriter,
) -> Manifest:
    checkpoint, loaded = model.checkpoint, model.loaded
    return Manifest(
        schema_version=SCHEMA_VERSION,
        bei_version=bei.__version__,
        name=bundle_name(checkpoint, options),
        model_type=checkpoint.config.name,
        adapter=model.adapter,
        license=checkpoint.license,
        source=source,
        encoder=msgspec.to_builtins(loaded.cfg),
        head=_head_spec(loaded),
        tokenizer=model.tokenizer.spec,
        prompts=loaded.head_files.prompts,
        default_prompt=loaded.head_files.default_prompt,
        limits=_limits(model, options),
        precision={} if precision is None else msgspec.to_builtins(precision),
        engines=engines,
        fallback=tuple(sorted((e.target for e in engines), key=_preference)),
        parity=ParityRecord(file=None, verdicts={engine.target: "not run" for engine in engines}),
        files=dict(writer.files),
    )


def bundle_name(checkpoint: Checkpoint, options: BuildOptions) -> str:
    """The repository's name, with a suffix where the bundle gives tokens; for a folder, which may be called anything,
    the name chosen for the bundle."""
    if checkpoint.revision is None and options.out is not None:
        return options.out.name.removesuffix(".bundle")
    return f"{checkpoint.name}-tokens" if options.token_embeddings else checkpoint.name


def _head_spec(loaded: LoadedModel) -> HeadSpec:
    head = loaded.head
    return HeadSpec(
        task=head.task,
        output=head.output,
        dimensions=output_width(loaded.cfg, head),
        pooling=head.pooling,
        include_prompt=head.include_prompt,
        normalized=any(isinstance(step, Normalize) for step in head.steps[-1:]),
        matryoshka=head.matryoshka,
        labels=head.labels,
        problem_type=head.problem_type,
    )


def _preference(target: str) -> int:
    """GPU engines before the CPU's."""
    order = ("tensorrt-sm", "cuda-", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu")
    return next(i for i, prefix in enumerate(order) if target.startswith(prefix))
