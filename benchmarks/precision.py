"""What range folding costs at run time (nothing), and how long audit and parity of MiniLM take.

    python -m benchmarks.precision [--rounds 5] [--batches 20]

Folding: MiniLM with outliers of 1e5 planted in v, which its policy folds away, beside the same graph without the policy. Time:
new processes from the first import to the verdict, for an FP16 engine that is built but not executed, and the CPU's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import onnx
import onnxruntime
from benchmarks.minilm import checkpoint
from benchmarks.record import Row, save, spread

from bei.compiler.build import Model, compile_bundle, read_model
from bei.compiler.engines import tensorrt
from bei.compiler.engines.tensorrt import TensorRtOptions
from bei.compiler.lowering.emit import emit
from bei.compiler.lowering.policy import ONNXRUNTIME_CPU, TENSORRT
from bei.compiler.options import BuildOptions
from bei.compiler.precision.audit import FOLDER, Batch, audit
from bei.compiler.precision.calibration import calibration_batches
from bei.compiler.precision.plan import plan_scales
from bei.compiler.precision.policy import PLAIN, Policy
from bei.compiler.progress import Quiet, Stage, Unit
from bei.compiler.target import parse_target
from bei.compiler.weights import Weight
from bei.manifest import Manifest

OUTLIER = 1e5
RTX = "tensorrt-rtx-sm89"


def planted(model: Model) -> Mapping[str, Weight]:
    """v larger by `OUTLIER`, o smaller: the same function, and FP16 overflows."""
    factors = {"v": OUTLIER, "o": 1 / OUTLIER}

    def factor(name: str) -> float:
        *_, linear, kind = name.split(".")
        return 1.0 if (linear, kind) == ("o", "bias") else factors.get(linear, 1.0)

    return {name: replace(w, scale=w.scale * factor(name)) for name, w in model.loaded.weights.items()}


@contextmanager
def session(
    model: Model, weights: Mapping[str, Weight], policy: Policy
) -> Iterator[tuple[onnxruntime.InferenceSession, Counter[str]]]:
    """The served graph in ONNX Runtime, and its nodes by kind after optimisation."""
    graph = emit(model.loaded.cfg, model.loaded.head, weights, ONNXRUNTIME_CPU, policy)
    folder = next(str(weight.folder) for weight in graph.weights.values() if weight.folder is not None)
    with tempfile.TemporaryDirectory() as temporary:
        written = Path(temporary, "optimized.onnx")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(written)
        options.add_session_config_entry(FOLDER, folder)
        made = onnxruntime.InferenceSession(graph.serialize(), options, providers=["CPUExecutionProvider"])
        nodes = Counter(node.op_type for node in onnx.load(written, load_external_data=False).graph.node)
        yield made, nodes


def folding(rounds: int, count: int) -> list[Row]:
    """Time and nodes of the CPU graph, kernels of the TensorRT-RTX plan, with the policy and without it."""
    model = read_model(BuildOptions(repo=str(checkpoint())))
    weights = planted(model)
    batches = calibration_batches(
        model.tokenizer.json, "embed", model.tokenizer.max_length, model.tokenizer.spec.pad_id
    )
    ranges = audit(model.loaded.cfg, model.loaded.head, weights, batches).ranges
    policy = plan_scales(model.loaded.cfg, ranges)
    assert policy.scales, "nothing was folded"
    variants = {"as it is": PLAIN, f"{len(policy.scales)} sites folded": policy}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    nodes: dict[str, Counter[str]] = {}
    with session(model, weights, PLAIN) as (a, of_a), session(model, weights, policy) as (b, of_b):
        sessions = dict(zip(variants, (a, b), strict=True))
        nodes = dict(zip(variants, (of_a, of_b), strict=True))
        outputs = {name: passed(one, batches[:count]) for name, one in sessions.items()}
        for _ in range(rounds):
            for name, one in sessions.items():
                began = time.perf_counter()
                passed(one, batches[:count])
                seconds[name].append(time.perf_counter() - began)
    first, second = variants
    assert nodes[first] == nodes[second], f"{nodes[first]} and {nodes[second]}"
    off = max(float(np.abs(x - y).max()) for x, y in zip(outputs[first], outputs[second], strict=True))
    return [
        {
            "what": f"CPU graph, {name}",
            "result": f"{spread([1e3 * t for t in seconds[name]], 1)} ms, {nodes[name].total()} nodes",
            "note": "" if name == first else f"vectors differ by {off:.0e}",
        }
        for name in variants
    ] + kernels(model, weights, variants)


def passed(one: onnxruntime.InferenceSession, batches: list[Batch]) -> list[Any]:
    names = [value.name for value in one.get_inputs()]
    found = []
    for ids, mask, types in batches:
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        found.append(one.run(None, {name: feeds[name] for name in names})[0])
    return found


def kernels(model: Model, weights: Mapping[str, Weight], variants: Mapping[str, Policy]) -> list[Row]:
    """Launches of a TensorRT-RTX plan; nothing where it cannot be built."""
    if tensorrt.available("tensorrt-rtx") is not None:
        return []
    rows: list[Row] = []
    for name, policy in variants.items():
        graph = emit(model.loaded.cfg, model.loaded.head, weights, TENSORRT, policy)
        options = TensorRtOptions(
            target=parse_target(RTX), layout="padded", max_batch=64, max_length=256, max_batch_tokens=4096
        )
        with tempfile.TemporaryDirectory() as temporary:
            built = tensorrt.build(graph.serialize(), graph.weights, options, Path(temporary, "plan"))
        kept = {key: built.evidence[key] for key in ("kernels", "fused_attention")}
        rows.append(
            {
                "what": f"{RTX} plan (built, not executed), {name}",
                "result": f"{kept['kernels']} kernels, {kept['fused_attention']} of them fused attention",
                "note": "",
            }
        )
    return rows


def duration(rounds: int) -> list[Row]:
    """Audit with policy, and parity, each from a new process's first import on."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.precision", "--stages"], check=True, capture_output=True
        )
        for name, seconds in json.loads(done.stdout.splitlines()[-1]).items():
            found.setdefault(name, []).append(seconds)
    return [
        {"what": f"MiniLM, {name}", "result": f"{spread(seconds, 1)} s", "note": ""}
        for name, seconds in found.items()
    ]


def stages() -> None:
    """One compile of the CPU's and a TensorRT-RTX engine; prints the seconds of audit and parity as JSON."""
    from bei.compiler.parity.certificate import certifier

    clock = Clock()
    began = time.perf_counter()
    measure = certifier()

    def certify(bundle: Path, folder: Path) -> Manifest:
        with clock.stage("parity"):
            return measure(bundle, folder)

    with tempfile.TemporaryDirectory() as temporary:
        targets = ("onnxruntime-cpu", RTX) if tensorrt.available("tensorrt-rtx") is None else ()
        options = BuildOptions(repo=str(checkpoint()), out=Path(temporary, "minilm.bundle"), targets=targets)
        _, manifest = compile_bundle(options, progress=clock, certify=certify)
    assert manifest.parity.verdicts["onnxruntime-cpu"] == "passed"
    audited, parity = clock.seconds["precision"], clock.seconds["parity"]
    print(
        json.dumps(
            {
                "audit and policy": audited,
                "parity of both engines": parity,
                "audit and parity together": audited + parity,
                "the whole compile": time.perf_counter() - began,
            }
        )
    )


class Clock(Quiet):
    """Remembers how long each stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, total: int | None = None, *, unit: Unit = "bytes") -> Iterator[Stage]:
        began = time.perf_counter()
        with super().stage(name, total, unit=unit) as stage:
            yield stage
        self.seconds[name] = time.perf_counter() - began


def main() -> None:
    """Both parts in one file of results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--stages", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stages:
        stages()
        return
    rows = folding(options.rounds, options.batches) + duration(min(3, options.rounds))
    save(
        "precision", "Range folding at run time; time of audit and parity, all-MiniLM-L6-v2 on the CPU", rows
    )


if __name__ == "__main__":
    main()
