"""A Triton model repository: NAME (the ensemble that clients call), NAME_tokenizer (Python), NAME_engine (ONNX or plan).

Triton batches rows without knowing how long they are. Its largest batch is therefore as many rows of the longest text
as the engine's token budget holds: every batch it can put together fits the engine, and its memory.
"""

import json
import re
import shutil
from pathlib import Path

from bei.compiler.export.folder import choose, copy_graph, portable_tokenizer, write_json
from bei.compiler.export.pbtxt import Enum, Message, entry, text
from bei.errors import BundleError
from bei.manifest import EngineRecord, Limits, Manifest
from bei.runtime.bundle import Bundle

TOKENIZER_STEP = Path(__file__).with_name("triton_tokenizer.py")
"""Copied as it is; it runs inside Triton and imports nothing of this project."""

SHORTEST = 16
"""Shorter batches are padded to this length."""

README = """\
# {name} for Triton Inference Server

    docker run ... -v $PWD:/models nvcr.io/nvidia/tritonserver:<release>-py3 tritonserver --model-repository=/models

The tokenizer step needs `pip install tokenizers` in the container. {needs}

Call `{name}`; a request holds at most {rows} texts of at most {length} tokens each:

    curl localhost:8000/v2/models/{name}/infer -d '{body}'

The answer is `{output}`.{prompts}
"""


def write(bundle: Bundle, folder: Path, *, target: str | None, allow_unverified: bool) -> EngineRecord:
    """Fill ``folder``; ``target`` None takes the first TensorRT engine there is, else the CPU's. Raises BundleError."""
    manifest = bundle.manifest
    record = choose(manifest, [target] if target else _preferred(manifest), allow_unverified=allow_unverified)
    _require_loadable(manifest, record)
    name = model_name(manifest.name)
    configs = {
        name: ensemble_config(manifest, record, name),
        f"{name}_tokenizer": tokenizer_config(manifest, record, name),
        f"{name}_engine": engine_config(manifest, record, name),
    }
    for model, config in configs.items():
        (folder / model / "1").mkdir(parents=True)
        (folder / model / "config.pbtxt").write_text(text(config), encoding="utf-8")
    _write_engine(bundle, record, folder / f"{name}_engine" / "1")
    _write_tokenizer(bundle, record, folder / f"{name}_tokenizer" / "1")
    (folder / "README.md").write_text(_readme(manifest, record, name), encoding="utf-8")
    return record


def model_name(name: str) -> str:
    """A bundle's name as a folder and in a URL."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def largest_batch(limits: Limits) -> int:
    """Rows of the longest text that fit the token budget, at least one."""
    return max(1, min(limits.max_batch, limits.max_batch_tokens // limits.max_length))


def lengths(longest: int) -> list[int]:
    """What batches are padded to: powers of two and the numbers half-way between them, up to the longest text."""
    steps = sorted(size for power in range(4, 31) for size in (1 << power, 3 << (power - 1)))
    return [size for size in steps if SHORTEST <= size < longest] + [longest]


def ensemble_config(manifest: Manifest, record: EngineRecord, name: str) -> Message:
    """Texts in, the engine's output out."""
    made = _tokenizer_outputs(manifest, record)
    passed = [_tensor(n, manifest, record) for n in made if n not in record.inputs]
    if manifest.head.per_token:
        passed.insert(0, _tensor("attention_mask", manifest, record))
    steps: list[Message] = [
        _step(f"{name}_tokenizer", _text_inputs(manifest), made),
        _step(f"{name}_engine", record.inputs, [manifest.head.output]),
    ]
    return {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": largest_batch(manifest.limits),
        "input": _texts(manifest),
        "output": [_output(manifest), *passed],
        "ensemble_scheduling": {"step": steps},
    }


def tokenizer_config(manifest: Manifest, record: EngineRecord, name: str) -> Message:
    """The Python step; it runs on the CPU, two at a time."""
    return {
        "name": f"{name}_tokenizer",
        "backend": "python",
        "max_batch_size": largest_batch(manifest.limits),
        "input": _texts(manifest),
        "output": [_tensor(n, manifest, record) for n in _tokenizer_outputs(manifest, record)],
        "instance_group": [{"count": 2, "kind": Enum("KIND_CPU")}],
    }


def engine_config(manifest: Manifest, record: EngineRecord, name: str) -> Message:
    """The engine with dynamic batching, warmed with its shortest batch and, on a GPU, its largest."""
    rows, plan = largest_batch(manifest.limits), record.backend == "tensorrt"
    group: dict[str, str | int | list[str]] = {"count": 1, "kind": Enum("KIND_GPU" if plan else "KIND_CPU")}
    if plan and len(record.profiles) > 1:
        group["profile"] = [str(index) for index in range(len(record.profiles))]
    warm = [(1, min(SHORTEST, manifest.limits.max_length))]
    if plan:
        warm.append((rows, manifest.limits.max_length))
    return {
        "name": f"{name}_engine",
        **({"platform": "tensorrt_plan"} if plan else {"backend": "onnxruntime"}),
        "max_batch_size": rows,
        "input": [_engine_input(n, manifest, record) for n in record.inputs],
        "output": [_output(manifest)],
        "dynamic_batching": {},
        "instance_group": [group],
        "model_warmup": [_warmup(record, *shape) for shape in warm],
    }


def _preferred(manifest: Manifest) -> list[str]:
    plans = [r.target for r in manifest.engines if r.backend == "tensorrt" and r.layout == "padded"]
    return [*plans, "onnxruntime-cpu"]


def _require_loadable(manifest: Manifest, record: EngineRecord) -> None:
    if record.backend not in ("tensorrt", "onnxruntime"):
        raise BundleError(
            f"{manifest.name}: Triton has no back end for {record.backend} engines (target {record.target}). "
            "Choose --target onnxruntime-cpu, or compile for tensorrt-smNN on the GPU that serves."
        )
    if record.layout != "padded":
        raise BundleError(
            f"{manifest.name}: {record.target} takes packed batches, which Triton's batcher cannot put together. "
            "Compile with --layout padded."
        )


def _write_engine(bundle: Bundle, record: EngineRecord, folder: Path) -> None:
    if record.backend == "tensorrt":
        shutil.copyfile(bundle.path / record.path, folder / "model.plan")
    else:
        copy_graph(bundle, record, folder)


def _write_tokenizer(bundle: Bundle, record: EngineRecord, folder: Path) -> None:
    manifest = bundle.manifest
    tokenizer = portable_tokenizer(bundle)
    tokenizer.no_padding()  # rows are padded together, to a length of the list
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "settings.json",
        {
            "inputs": _text_inputs(manifest),
            "outputs": _tokenizer_outputs(manifest, record),
            "dtype": "int32" if record.backend == "tensorrt" else "int64",
            "pad_id": manifest.tokenizer.pad_id,
            "lengths": lengths(manifest.limits.max_length),
            "prompts": manifest.prompts,
            "default_prompt": manifest.default_prompt,
        },
    )
    shutil.copyfile(TOKENIZER_STEP, folder / "model.py")


def _text_inputs(manifest: Manifest) -> list[str]:
    return ["TEXT", "TEXT_PAIR"] if manifest.head.task == "rerank" else ["TEXT"]


def _tokenizer_outputs(manifest: Manifest, record: EngineRecord) -> list[str]:
    """The engine's inputs; for per-token results also where each token lies in its text."""
    return [*record.inputs, *(["offsets"] if manifest.head.per_token else [])]


def _texts(manifest: Manifest) -> list[Message]:
    return [{"name": n, "data_type": Enum("TYPE_STRING"), "dims": [1]} for n in _text_inputs(manifest)]


def _kind(record: EngineRecord) -> Enum:
    return Enum("TYPE_INT32" if record.backend == "tensorrt" else "TYPE_INT64")


def _tensor(name: str, manifest: Manifest, record: EngineRecord) -> Message:
    """One of the tokenizer's outputs; the batch axis is not written down."""
    if name == "offsets":
        return {"name": name, "data_type": Enum("TYPE_INT32"), "dims": [-1, 2]}
    return {"name": name, "data_type": _kind(record), "dims": [1 if name == "prompt_length" else -1]}


def _engine_input(name: str, manifest: Manifest, record: EngineRecord) -> Message:
    """As the tokenizer gives it; prompt_length is [B] in the graph, which Triton writes as a reshape to nothing."""
    tensor = _tensor(name, manifest, record)
    return {**tensor, "reshape": {"shape": []}} if name == "prompt_length" else tensor


def _output(manifest: Manifest) -> Message:
    head = manifest.head
    dims = [-1, head.dimensions] if head.per_token else [head.dimensions]
    return {"name": head.output, "data_type": Enum("TYPE_FP32"), "dims": dims}


def _step(model: str, inputs: "list[str] | tuple[str, ...]", outputs: list[str]) -> Message:
    return {
        "model_name": model,
        "model_version": -1,
        "input_map": [entry(n, n) for n in inputs],
        "output_map": [entry(n, n) for n in outputs],
    }


def _warmup(record: EngineRecord, rows: int, length: int) -> Message:
    """A batch of zeros: no graph divides by what it masks."""
    inputs = [
        entry(
            name,
            {
                "data_type": _kind(record),
                "dims": [1 if name == "prompt_length" else length],
                "zero_data": True,
            },
        )
        for name in record.inputs
    ]
    return {"name": f"{rows}x{length}", "batch_size": rows, "inputs": inputs}


def _readme(manifest: Manifest, record: EngineRecord, name: str) -> str:
    data = {"TEXT": ["a text"], "TEXT_PAIR": ["another text"]}
    body = {
        "inputs": [
            {"name": n, "shape": [1, 1], "datatype": "BYTES", "data": data[n]} for n in _text_inputs(manifest)
        ]
    }
    names = ", ".join(f"`{prompt}`" for prompt in manifest.prompts)
    prompts = f' A prompt is chosen with `"parameters": {{"prompt_name": …}}`: {names}.' if names else ""
    return README.format(
        name=name,
        needs=_needs(record),
        rows=largest_batch(manifest.limits),
        length=manifest.limits.max_length,
        body=json.dumps(body),
        output=manifest.head.output,
        prompts=prompts,
    )


def _needs(record: EngineRecord) -> str:
    """Who reads a plan; nothing for an ONNX model."""
    if record.backend != "tensorrt":
        return ""
    version = record.tool_versions.get(record.backend, "")
    where = f"on compute capability {', '.join(record.compute_capabilities)}"
    if not record.version_compatible:
        return f"The plan is read by TensorRT {version} alone, {where}."
    return (
        f"The plan is read by TensorRT {version} and later, {where}; it holds code, so Triton wants "
        "`--backend-config=tensorrt,version-compatible=true`."
    )
