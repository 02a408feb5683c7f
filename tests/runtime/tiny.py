"""A bundle of a few kilobytes with a real tokenizer and a real ONNX graph, and its definition in numpy."""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import tokenizers
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from tokenizers import models, normalizers, pre_tokenizers, processors

from bei.manifest import (
    MANIFEST_FILE,
    EngineRecord,
    FileRecord,
    Golden,
    HeadSpec,
    Limits,
    Manifest,
    ParityRecord,
    Source,
    Task,
    TokenizerSpec,
    Verdict,
    encode_manifest,
)

DIM = 8
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS)]
WORDS += ["hello", "world", "query", ":", ".", "poison"]
VOCAB = {word: index for index, word in enumerate(WORDS)}
CLS, SEP, POISON = VOCAB["[CLS]"], VOCAB["[SEP]"], VOCAB["poison"]
"""A text with the word "poison" gives NaN."""

OUTPUTS: dict[Task, str] = {"embed": "sentence_embedding", "embed-tokens": "token_embeddings"}
PER_TOKEN: tuple[Task, ...] = ("embed-tokens", "token-classify")

Array = npt.NDArray[np.float32]
S = TypeVar("S", bound=msgspec.Struct)


def library() -> tokenizers.Tokenizer:
    """WordPiece over `WORDS`, lower-casing, [CLS] A [SEP] B [SEP]; stored truncation and padding, as real files have."""
    made = tokenizers.Tokenizer(models.WordPiece(VOCAB, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    made.enable_truncation(5)
    made.enable_padding(length=5)
    return made


def weights(classes: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    made = {
        "tokens": rng.normal(size=(len(WORDS), DIM)),
        "types": rng.normal(size=(2, DIM)),
        "classifier": rng.normal(size=(DIM, max(1, classes))),
    }
    made["tokens"][POISON] = np.nan
    return {name: value.astype(np.float32) for name, value in made.items()}


def expected(
    ids: Sequence[int],
    types: Sequence[int] | None = None,
    *,
    task: Task = "embed",
    classes: int = 0,
    skip: int = 0,
    seed: int = 0,
) -> Array:
    """What the graph computes for one row, `skip` leading tokens kept out of the pooling."""
    w = weights(classes, seed)
    x_LD = w["tokens"][list(ids)] + w["types"][list(types or [0] * len(ids))]
    if task == "token-classify":
        return np.asarray(x_LD @ w["classifier"], np.float32)
    if task == "embed-tokens":
        return np.asarray(x_LD, np.float32)
    mean_D = x_LD[skip:].sum(axis=0) / max(len(ids) - skip, 1e-9)
    out = mean_D / np.linalg.norm(mean_D) if task == "embed" else mean_D @ w["classifier"]
    return np.asarray(out, np.float32)


def write_bundle(
    folder: Path, *, task: Task = "embed", labels: Sequence[str] = (), seed: int = 0, **changes: Any
) -> Path:
    """A complete bundle, other weights with another ``seed``. ``changes`` replace manifest fields; HeadSpec's and Limits'
    go by their own names."""
    folder.mkdir(parents=True)
    skips_prompt = not changes.get("include_prompt", True)
    save_file(weights(len(labels), seed), folder / "model.safetensors")
    model = _graph(folder / "model.safetensors", task, len(labels), skips_prompt)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    library().save(str(folder / "tokenizer.json"))
    (folder / "parity.json").write_text("{}")
    inputs = tuple(value.name for value in model.graph.input)
    seal(folder, _manifest(task, tuple(labels), inputs, changes))
    return folder


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest over the files as they lie there now."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    files = {path.relative_to(folder).as_posix(): record(path) for path in found}
    (folder / MANIFEST_FILE).write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=files)))


def record(path: Path) -> FileRecord:
    data = path.read_bytes()
    return FileRecord(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def engine(target: str = "onnxruntime-cpu", **changes: Any) -> EngineRecord:
    fields: dict[str, Any] = {
        "target": target,
        "backend": "onnxruntime",
        "device": "cpu",
        "layout": "padded",
        "precision": "fp32",
        "path": "model.onnx",
        "inputs": ("input_ids", "attention_mask", "token_type_ids"),
        "status": "executed",
        "tool_versions": {},
    }
    return EngineRecord(**(fields | changes))


def _manifest(
    task: Task, labels: tuple[str, ...], inputs: tuple[str, ...], changes: Mapping[str, Any]
) -> Manifest:
    head = HeadSpec(
        task=task,
        output=OUTPUTS.get(task, "logits"),
        dimensions=len(labels) or DIM,
        pooling=() if task in PER_TOKEN else ("mean",),
        include_prompt=True,
        normalized=task == "embed",
        labels=labels,
    )
    limits = Limits(max_length=16, max_batch_tokens=256, max_batch=8)
    golden = (Golden(text="Hello, wörld", ids=(CLS, VOCAB["hello"], VOCAB["[UNK]"], VOCAB["world"], SEP)),)
    verdict: Verdict = "passed"
    manifest = Manifest(
        schema_version=1,
        bei_version="0",
        name="tiny",
        model_type="bert",
        adapter="bert",
        license="apache-2.0",
        source=Source(repo="example/tiny", revision="0" * 40, files={}),
        encoder={},
        head=_replace(head, changes),
        tokenizer=TokenizerSpec(file="tokenizer.json", pad_id=0, vocab_size=len(WORDS), golden=golden),
        prompts={},
        default_prompt=None,
        limits=_replace(limits, changes),
        precision={},
        engines=(engine(inputs=inputs),),
        fallback=("onnxruntime-cpu",),
        parity=ParityRecord(file="parity.json", verdicts={"onnxruntime-cpu": verdict}),
        files={},
    )
    return _replace(manifest, changes)


def _replace(value: S, changes: Mapping[str, Any]) -> S:
    own = {name: changes[name] for name in value.__struct_fields__ if name in changes}
    return msgspec.structs.replace(value, **own)


def _graph(stored: Path, task: Task, classes: int, skips_prompt: bool) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["tokens", "input_ids"], ["of_token"]),
        helper.make_node("Gather", ["types", "token_type_ids"], ["of_type"]),
        helper.make_node("Add", ["of_token", "of_type"], ["x"]),
        helper.make_node("Cast", ["attention_mask"], ["real"], to=TensorProto.FLOAT),
    ]
    names = ["input_ids", "attention_mask", "token_type_ids"]
    pooled = [
        helper.make_node("Unsqueeze", ["keep", "last"], ["keep3"]),
        helper.make_node("Mul", ["x", "keep3"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["keep3", "one"], ["some"], keepdims=0),
        helper.make_node("Max", ["some", "tiny"], ["count"]),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
    ]
    prompt = [
        helper.make_node("Shape", ["input_ids"], ["L"], start=1, end=2),
        helper.make_node("Squeeze", ["L"], ["length"]),
        helper.make_node("Range", ["zero", "length", "unit"], ["positions"]),
        helper.make_node("Unsqueeze", ["prompt_length", "last"], ["skip"]),
        helper.make_node("Less", ["positions", "skip"], ["in_prompt"]),
        helper.make_node("Where", ["in_prompt", "none", "real"], ["keep"]),
    ]
    if task == "embed-tokens":
        nodes.append(helper.make_node("Identity", ["x"], ["token_embeddings"]))
    elif task == "token-classify":
        nodes.append(helper.make_node("MatMul", ["x", "classifier"], ["logits"]))
    else:
        nodes += prompt if skips_prompt else [helper.make_node("Identity", ["real"], ["keep"])]
        nodes += pooled
        if task == "embed":
            nodes.append(helper.make_node("ReduceL2", ["mean", "last"], ["norm"]))
            nodes.append(helper.make_node("Div", ["mean", "norm"], ["sentence_embedding"]))
        else:
            nodes.append(helper.make_node("MatMul", ["mean", "classifier"], ["logits"]))
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "L"]) for name in names]
    if skips_prompt:
        inputs.append(helper.make_tensor_value_info("prompt_length", TensorProto.INT64, ["B"]))
    output = OUTPUTS.get(task, "logits")
    shape: list[str | int | None] = ["B", *(["L"] if task in PER_TOKEN else []), classes or DIM]
    constants = {"last": [-1], "one": [1], "zero": 0, "unit": 1}
    initializers = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in constants.items()]
    initializers += [
        numpy_helper.from_array(np.array(v, np.float32), k) for k, v in (("tiny", 1e-9), ("none", 0))
    ]
    used = {name for node in nodes for name in node.input}
    initializers = [tensor for tensor in initializers + _stored(stored) if tensor.name in used]
    graph = helper.make_graph(
        nodes, "tiny", inputs, [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)], initializers
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _stored(file: Path) -> list[TensorProto]:
    """Initializers whose values stay in the safetensors file beside the graph."""
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    made = []
    for name, entry in msgspec.json.decode(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=entry["shape"])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", file.name), ("offset", 8 + size + begin), ("length", end - begin)):
            tensor.external_data.add(key=key, value=str(value))
        made.append(tensor)
    return made
