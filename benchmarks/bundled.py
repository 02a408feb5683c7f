"""A bundle around an encoder that has weights and no text: inputs are token ids. Needs no GPU."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import tokenizers

import bei
from bei.adapters.config import EncoderConfig
from bei.adapters.head import Head, Normalize
from bei.compiler.build import TOKENIZER_FILE
from bei.compiler.bundle import BundleWriter, hash_file, writing
from bei.compiler.encoder import output_width
from bei.compiler.engines import onnxruntime
from bei.compiler.engines.cuda import write_engine
from bei.compiler.precision.policy import PLAIN
from bei.compiler.target import parse_target
from bei.compiler.weights import Weight
from bei.cuda_plan import Plan
from bei.manifest import (
    SCHEMA_VERSION,
    EngineRecord,
    HeadSpec,
    Limits,
    Manifest,
    ParityRecord,
    Source,
    TokenizerSpec,
)

ONNXRUNTIME = "onnxruntime-cuda"


def write_bundle(
    out: Path,
    cfg: EncoderConfig,
    head: Head,
    weights: Mapping[str, Weight],
    *,
    max_length: int,
    plan: Plan | None = None,
) -> Path:
    """With an engine for ONNX Runtime CUDA, and one of our own where a ``plan`` is given."""
    with writing(out) as writer:
        for name, path in {
            w.file: w.folder / w.file for w in weights.values() if w.folder and w.file
        }.items():
            writer.copy(name, path, hash_file(path))
        _write_tokenizer(writer)
        engines = [onnxruntime.build(parse_target(ONNXRUNTIME), cfg, head, weights, writer, PLAIN)]
        if plan is not None:
            engines.append(write_engine(parse_target(f"cuda-sm{plan.sm}"), plan, writer, PLAIN))
        writer.finish(_manifest(out.name, cfg, head, max_length, engines, writer))
    return out


def _write_tokenizer(writer: BundleWriter) -> None:
    """One that knows no word: the bundle can be loaded, and is given ids."""
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    writer.write(TOKENIZER_FILE, library.to_str().encode())


def _manifest(
    name: str,
    cfg: EncoderConfig,
    head: Head,
    max_length: int,
    engines: list[EngineRecord],
    writer: BundleWriter,
) -> Manifest:
    targets = tuple(engine.target for engine in engines)
    pad = 0 if cfg.position_pad is None else cfg.position_pad
    return Manifest(
        schema_version=SCHEMA_VERSION,
        bei_version=bei.__version__,
        name=name,
        model_type="",
        adapter="",
        license=None,
        source=Source(repo=name, revision=None, files={}),
        encoder=msgspec.to_builtins(cfg),
        head=HeadSpec(
            task=head.task,
            output=head.output,
            dimensions=output_width(cfg, head),
            pooling=head.pooling,
            include_prompt=head.include_prompt,
            normalized=any(isinstance(step, Normalize) for step in head.steps[-1:]),
        ),
        tokenizer=TokenizerSpec(file=TOKENIZER_FILE, pad_id=pad, vocab_size=cfg.vocab, golden=()),
        prompts={},
        default_prompt=None,
        limits=Limits(max_length=max_length, max_batch_tokens=max(16384, max_length), max_batch=256),
        precision=msgspec.to_builtins(PLAIN),
        engines=tuple(engines),
        fallback=targets,
        parity=ParityRecord(file=None, verdicts=dict.fromkeys(targets, "not run")),
        files=dict(writer.files),
    )
