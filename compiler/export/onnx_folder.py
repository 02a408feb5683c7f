"""One folder that any ONNX Runtime user loads: graph, weights, tokenizer, configuration.

The head is inside the graph, so its output is the answer: ``sentence_embedding`` or ``logits``, float32.
"""

from pathlib import Path

from bei.compiler.export.folder import choose, copy_graph, source_json, write_json
from bei.compiler.export.tokenizer_files import write_tokenizer
from bei.errors import BundleError
from bei.manifest import EngineRecord, Manifest
from bei.runtime.bundle import Bundle

README = """\
# {name}

ONNX export of {repo}, {task}. The graph `model.onnx` holds the whole model, head included, and refers to the weights
beside it; keep the files together. Texts may have {length} tokens.

{how}
{prompts}"""

ONNX_RUNTIME = """\
    import numpy, onnxruntime, tokenizers
    tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")     # truncates and pads by itself
    session = onnxruntime.InferenceSession("model.onnx")
    rows = tokenizer.encode_batch(["a text", "another one"])
    feeds = {{
{feeds}
    }}
    (answer,) = session.run(["{output}"], feeds)
"""

FEEDS = {
    "input_ids": "[row.ids for row in rows]",
    "attention_mask": "[row.attention_mask for row in rows]",
    "token_type_ids": "[row.type_ids for row in rows]",
    "prompt_length": "[0 for row in rows]",
}
"""``prompt_length`` counts a row's leading tokens that belong to a prompt: the pooling leaves them out."""

FASTEMBED = """
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType
    TextEmbedding.add_custom_model(
        model="{name}", pooling=PoolingType.DISABLED, normalization=False, dim={dimensions},
        sources=ModelSource(url="local"), model_file="model.onnx",
    )
    TextEmbedding("{name}", specific_model_path="this folder").embed(["a text"])
"""


def write(bundle: Bundle, folder: Path, *, target: str | None, allow_unverified: bool) -> EngineRecord:
    """Fill ``folder``; ``target`` None takes the CPU engine. Raises BundleError."""
    manifest = bundle.manifest
    record = choose(manifest, [target or "onnxruntime-cpu"], allow_unverified=allow_unverified)
    require_onnx(manifest, record)
    copy_graph(bundle, record, folder)
    write_tokenizer(bundle, folder, record.inputs)
    if (config := source_json(bundle, "config.json")) is not None:
        write_json(folder / "config.json", config)
    (folder / "README.md").write_text(_readme(manifest, record), encoding="utf-8")
    return record


def require_onnx(manifest: Manifest, record: EngineRecord) -> None:
    """Raises BundleError for an engine that is no ONNX graph."""
    if record.backend != "onnxruntime":
        raise BundleError(
            f"{manifest.name}: {record.target} is a {record.backend} engine, no ONNX graph. "
            "Choose --target onnxruntime-cpu."
        )


def _readme(manifest: Manifest, record: EngineRecord) -> str:
    feeds = "\n".join(f'        "{name}": numpy.array({FEEDS[name]}),' for name in record.inputs)
    how = ONNX_RUNTIME.format(feeds=feeds, output=manifest.head.output)
    if manifest.head.task == "embed" and "prompt_length" not in record.inputs:
        how += FASTEMBED.format(name=manifest.name, dimensions=manifest.head.dimensions)
    prompts = [f"- `{name}`: `{text}`" for name, text in manifest.prompts.items() if text]
    said = ["Put the prompt of its kind before each text:", "", *prompts, ""] if prompts else []
    return README.format(
        name=manifest.name,
        repo=manifest.source.repo,
        task=manifest.head.task,
        length=manifest.limits.max_length,
        how=how,
        prompts="\n".join(said),
    )
