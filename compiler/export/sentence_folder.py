"""A folder for sentence-transformers: the checkpoint as it came (its tokenizer pinned), and beside it the ONNX graph that
``SentenceTransformer(folder, backend="onnx")`` or ``CrossEncoder(folder, backend="onnx")`` runs.

sentence-transformers pools, projects and normalises by itself, so for embeddings the graph ends at the last hidden
state; for pairs and classes it ends at the logits. The folder also loads with ``backend="torch"``.
"""

from pathlib import Path
from typing import Any

from bei.adapters.head import TOKENS, Head, Normalize, Pooling, Scale
from bei.adapters.registry import adapter_for
from bei.compiler.checkpoint.checkpoint import open_checkpoint
from bei.compiler.checkpoint.files import read_optional
from bei.compiler.checkpoint.load import LoadedModel, load_model
from bei.compiler.checkpoint.modules import CONFIG, MODULES, SENTENCE_CONFIGS
from bei.compiler.export.folder import choose, copy_checkpoint, write_json
from bei.compiler.export.tokenizer_files import write_tokenizer
from bei.compiler.lowering.emit import emit
from bei.compiler.lowering.policy import ONNXRUNTIME_CPU
from bei.errors import BundleError
from bei.manifest import EngineRecord, Manifest
from bei.runtime.bundle import Bundle

HIDDEN = "last_hidden_state"
"""The output's name that the ONNX back end of sentence-transformers reads."""

FLAGS: dict[Pooling, str] = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
    "last": "pooling_mode_lasttoken",
}
"""The old spelling, which every version of sentence-transformers reads."""


def write(bundle: Bundle, folder: Path, *, target: str | None, allow_unverified: bool) -> EngineRecord:
    """Fill ``folder``. ``target`` names the engine whose proof is asked for (default: the CPU's, whose graph this is).

    Raises BundleError.
    """
    manifest = bundle.manifest
    record = choose(manifest, [target or "onnxruntime-cpu"], allow_unverified=allow_unverified)
    if record.target != "onnxruntime-cpu":
        raise BundleError(f"{manifest.name}: sentence-transformers runs ONNX graphs, not {record.target}.")
    if manifest.head.per_token:
        raise BundleError(
            f"{manifest.name}: sentence-transformers has no models for {manifest.head.task}. Use --format onnx."
        )
    copy_checkpoint(bundle, folder)
    checkpoint = open_checkpoint(str(folder), offline=True)
    if "AutoConfig" in checkpoint.config.get("auto_map", {}):
        raise BundleError(
            f"{manifest.name}: sentence-transformers loads it only with the checkpoint's own code (auto_map in its "
            "config.json), which is never shipped. Use --format onnx."
        )
    model = load_model(checkpoint, adapter_for(checkpoint.config))
    (folder / "model.onnx").write_bytes(_graph(manifest, model))
    write_tokenizer(bundle, folder, record.inputs)
    if manifest.head.task == "embed":
        _write_modules(folder, manifest, model)
    return record


def _graph(manifest: Manifest, model: LoadedModel) -> bytes:
    head = model.head
    if head.task == "embed":
        emitted = emit(model.cfg, TOKENS, model.weights, ONNXRUNTIME_CPU)
        emitted.model.graph.outputs[0].name = HIDDEN
        return emitted.serialize()
    if any(isinstance(step, Scale) for step in head.steps):
        raise BundleError(f"{manifest.name}: CrossEncoder would scale its logits twice. Use --format onnx.")
    return emit(model.cfg, head, model.weights, ONNXRUNTIME_CPU).serialize()


def _write_modules(folder: Path, manifest: Manifest, model: LoadedModel) -> None:
    """What comes after the encoder where the checkpoint does not say it, and the bundle's limit where it is shorter."""
    if not (folder / MODULES).exists():
        _describe(folder, manifest, model.head)
    name = next((name for name in SENTENCE_CONFIGS if (folder / name).exists()), SENTENCE_CONFIGS[0])
    settings = read_optional(folder, name)
    if settings.get("max_seq_length") != manifest.limits.max_length:
        write_json(folder / name, {**settings, "max_seq_length": manifest.limits.max_length})


def _describe(folder: Path, manifest: Manifest, head: Head) -> None:
    """modules.json, the pooling and the prompts, for a checkpoint without any."""
    steps = head.steps
    if any(not isinstance(step, Normalize) for step in steps):
        raise BundleError(
            f"{manifest.name}: its head is not made of sentence-transformers modules. Use --format onnx."
        )
    modules = [_module(0, "", "Transformer"), _module(1, "1_Pooling", "Pooling")]
    modules += [_module(2, "2_Normalize", "Normalize")] * bool(steps)
    write_json(folder / MODULES, modules)
    (folder / "1_Pooling").mkdir()
    flags = {flag: kind in head.pooling for kind, flag in FLAGS.items()}
    width = {"word_embedding_dimension": manifest.head.dimensions // max(1, len(head.pooling))}
    write_json(
        folder / "1_Pooling" / "config.json", {**width, **flags, "include_prompt": head.include_prompt}
    )
    if not (folder / CONFIG).exists():
        write_json(
            folder / CONFIG, {"prompts": manifest.prompts, "default_prompt_name": manifest.default_prompt}
        )


def _module(index: int, path: str, kind: str) -> dict[str, Any]:
    return {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
