"""Plans beside those of the plain export: kernels, activation memory, plan size, build time and peak memory.

python -m benchmarks.tensorrt [--only GLOB]

Every model at full width with random weights, in two forms of ours (padded, packed) and as ``torch.onnx.export`` writes
sentence-transformers' own modules in FP16, all through the same builder with one profile of 32 texts of 512 tokens. One
process a build, so that peak memory is its own. The export needs onnxscript (0.7.2 here). Rows of models that are not asked for stay as they are in the results.
"""

import argparse
import fnmatch
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from benchmarks.record import RESULTS, peak_mb, save

from bei.adapters.registry import adapter_for
from bei.compiler.checkpoint.checkpoint import open_checkpoint
from bei.compiler.checkpoint.load import load_model
from bei.compiler.engines import tensorrt
from bei.compiler.engines.tensorrt import TensorRtOptions
from bei.compiler.lowering.emit import emit
from bei.compiler.lowering.policy import TENSORRT
from bei.compiler.parity.native import translated
from bei.compiler.target import parse_target
from bei.compiler.weights import Weight
from bei.compiler.zoo.fact_files import facts_of
from bei.compiler.zoo.fixture import FixtureOptions, write_fixture
from bei.compiler.zoo.shapes import dimensions
from bei.errors import EngineError

ROOT = Path(__file__).parents[1]
NAME = "tensorrt"
WHAT = (
    "TensorRT-RTX plans (built, not executed) beside torch.onnx.export of the same model in FP16; "
    "one profile of 32 × 512 tokens"
)
MODELS = {
    "MiniLM-L6": "sentence-transformers/all-MiniLM-L6-v2",
    "BERT-base": "BAAI/bge-base-en-v1.5",
    "BERT-large": "BAAI/bge-large-en-v1.5",
    "ModernBERT-base": "answerdotai/ModernBERT-base",
    "nomic v1.5": "nomic-ai/nomic-embed-text-v1.5",
    "EmbeddingGemma-300m": "google/embeddinggemma-300m",
    "Qwen3-0.6B": "Qwen/Qwen3-Embedding-0.6B",
}
SMS = (80, 89, 120)
ROWS, LENGTH = 32, 512
FORMS = ("padded", "packed", "export")
DTYPES = {onnx.TensorProto.FLOAT: "F32", onnx.TensorProto.FLOAT16: "F16", onnx.TensorProto.BFLOAT16: "BF16"}


def export(checkpoint: Path, out: Path) -> None:
    """The model with its pooling as PyTorch exports it, in FP16, with both axes dynamic; opset 23, the newest that
    TensorRT's parser knows whole."""
    import torch
    from sentence_transformers import SentenceTransformer

    with translated(checkpoint) as there:
        model = SentenceTransformer(
            str(there), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float16}
        )

    class Whole(torch.nn.Module):
        """Ids and mask to the embedding."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model.half().eval()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            features = {"input_ids": input_ids, "attention_mask": attention_mask}
            vector: torch.Tensor = self.model(features)["sentence_embedding"]
            return vector

    ids = torch.ones(2, 16, dtype=torch.long)
    axes = {0: "batch", 1: "sequence"}
    torch.onnx.export(
        Whole(),
        (ids, ids),
        str(out),
        dynamo=True,
        opset_version=23,
        input_names=["input_ids", "attention_mask"],
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
        external_data=True,
        verbose=False,
    )


def exported(file: Path) -> tuple[bytes, dict[str, Weight]]:
    """The exported graph, and its weights where they lie; what is no weight (positions) goes into the graph."""
    model = onnx.load(file, load_external_data=False)
    weights = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        if tensor.data_type not in DTYPES:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(file.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
        else:
            place = {entry.key: entry.value for entry in tensor.external_data}
            weights[tensor.name] = Weight(
                name=tensor.name,
                shape=tuple(tensor.dims),
                dtype=DTYPES[tensor.data_type],
                folder=file.parent,
                file=place["location"],
                offset=int(place.get("offset", 0)),
            )
    return model.SerializeToString(), weights


def ours(folder: Path, layout: Any) -> tuple[bytes, Mapping[str, Weight]]:
    """Our graph of the checkpoint."""
    checkpoint = open_checkpoint(str(folder))
    model = load_model(checkpoint, adapter_for(checkpoint.config), values=False)
    graph = emit(model.cfg, model.head, model.weights, replace(TENSORRT, layout=layout))
    return graph.serialize(), graph.weights


def build(source: Path, form: str, sm: int, folder: Path) -> dict[str, Any]:
    """One build in this process; what its builder reported."""
    started = time.perf_counter()
    graph, weights = exported(source) if form == "export" else ours(source, form)
    options = TensorRtOptions(
        target=parse_target(f"tensorrt-rtx-sm{sm}"),
        layout="packed" if form == "packed" else "padded",
        max_batch=ROWS,
        max_length=LENGTH,
        max_batch_tokens=ROWS * LENGTH,
        allow_unfused=True,
    )
    built = tensorrt.build(graph, weights, options, folder / "plan")
    proof, (profile,) = built.evidence, built.profiles
    return {
        "build s": round(time.perf_counter() - started, 1),
        "plan MiB": round(proof["plan_bytes"] / 2**20, 1),
        "peak MiB": round(peak_mb() * 1e6 / 2**20),
        "kernels": proof["kernels"],
        "kernels a layer": _usual(proof["kernels_per_layer"]),
        "fused attentions": proof["fused_attention"],
        "activation MB": round((profile.activation_bytes or 0) / 1e6, 1),
    }


def _usual(counts: Sequence[int]) -> float | None:
    """The mean, since every so many layers one may differ; None where attention is not one kernel to count from."""
    return round(statistics.fmean(counts), 1) if counts else None


def model_rows(name: str, repo: str) -> Iterator[dict[str, Any]]:
    """A row for every SM and form."""
    facts = facts_of(repo)
    layers = dimensions(facts.config)["L"]
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint, graph = Path(temporary, "checkpoint"), Path(temporary, "export", "model.onnx")
        write_fixture(facts, checkpoint, FixtureOptions(full_width=True, layers=layers))
        graph.parent.mkdir()
        failed = _apart("--export", str(checkpoint), str(graph)).get("error")
        for sm in SMS:
            for form in FORMS:
                row = {"model": name, "SM": sm, "form": form}
                if form == "export" and failed:
                    yield row | {"note": failed}
                    continue
                source = graph if form == "export" else checkpoint
                yield row | _apart("--build", str(source), form, str(sm), temporary)


def _apart(*arguments: str) -> dict[str, Any]:
    """This script in a process of its own; what it printed, or its last words as an error."""
    command = [sys.executable, "-m", "benchmarks.tensorrt", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no reason given"])[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def saved() -> list[dict[str, Any]]:
    """Rows of earlier runs."""
    file = RESULTS / f"{NAME}.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"] if file.exists() else []
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare plans with those of the plain export.")
    parser.add_argument("--only", default="*", metavar="GLOB", help=f"models: {', '.join(MODELS)}")
    parser.add_argument(
        "--note", default="", help="circumstances to put into the title, such as a loaded machine"
    )
    parser.add_argument("--export", nargs=2, metavar=("DIR", "FILE"), help="one export; prints JSON")
    parser.add_argument(
        "--build", nargs=4, metavar=("SOURCE", "FORM", "SM", "DIR"), help="one build; prints JSON"
    )
    args = parser.parse_args(argv)
    if args.export is not None:
        export(Path(args.export[0]), Path(args.export[1]))
        print("{}")
        return 0
    if args.build is not None:
        source, form, sm, folder = args.build
        try:
            print(json.dumps(build(Path(source), form, int(sm), Path(folder))))
        except EngineError as error:
            print(json.dumps({"error": str(error)[:300]}))
        return 0
    title, order = f"{WHAT}; {args.note}" if args.note else WHAT, list(MODELS)
    for name, repo in MODELS.items():
        if fnmatch.fnmatchcase(name, args.only):
            fresh = list(model_rows(name, repo))
            kept = [row for row in saved() if row["model"] != name]
            save(NAME, title, sorted([*kept, *fresh], key=lambda row: order.index(row["model"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
