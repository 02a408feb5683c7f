"""ONNX Runtime CUDA beside the CUDA engine on one GPU, both through bei's executors and from one bundle.

python -m benchmarks.onnxruntime_cuda [--out h200] [--models bert-base …]

Random weights, fp16, medians. Device: ours is events around a graph replay; ONNX Runtime's is the wall time of a run with
inputs bound once, until its output is ready. Whole call: an executor's, from rows to vectors on the host. Texts a second:
8,000 of lognormal length (67 tokens on average, at most 256), in the batches that the runtime makes of them. ONNX Runtime's
batches are padded to the longest text. The cosine is between the two engines. Needs onnxruntime-gpu, the extra cuda and
PyTorch.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from benchmarks.bundled import ONNXRUNTIME, write_bundle
from benchmarks.cubins import build
from benchmarks.cuda_engine import Timed
from benchmarks.cuda_models import Lengths, ragged, rows_of
from benchmarks.cuda_shapes import CONFIGS, EMBED, cosine, random_weights
from benchmarks.record import save

import bei
from bei.compiler.lowering.cuda_options import CudaOptions
from bei.runtime import batching
from bei.runtime.executor import Row
from bei.runtime.executors.onnxruntime_cuda import MULTIPLE, load, providers
from bei.runtime.model import Model
from bei.runtime.packing import pad

MODELS = ("bert-base", "minilm-l6", "nomic-v1.5", "modernbert-base")
BATCHES: dict[str, Lengths] = {
    "128 × 128": [128] * 128,
    "32 × 512": [512] * 32,
    "ragged 16 k": ragged(16005),
    "1 × 32": [32],
}
LONGEST = 512
TEXTS = 8000


def lognormal(count: int) -> Lengths:
    """67 tokens on average, at most 256."""
    found = np.random.default_rng(0).lognormal(3.95, 0.75, count)
    return [int(n) for n in np.clip(np.rint(found), 3, 256)]


def median_ms(work: Callable[[], Any], repeats: int = 15) -> float:
    """On the host's clock, after three runs to warm up."""
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[3:])


def bound_ms(session: Any, inputs: tuple[str, ...], output: str, lengths: Lengths) -> float:
    """A run whose inputs lie on the device already."""
    arrays = pad(rows_of(lengths), 0, np.int32, multiple=MULTIPLE, longest=LONGEST)
    binding = session.io_binding()
    for name in inputs:
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(arrays[name], "cuda", 0))
    binding.bind_output(output, "cuda", 0)

    def work() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return median_ms(work)


def texts_a_second(model: Model, rows: list[Row]) -> int:
    """In the batches that `Model.encode` would make."""
    batches = [
        [rows[i] for i in batch] for batch in batching.plan([row.ids.size for row in rows], model.budget)
    ]

    def work() -> None:
        for batch in batches:
            model.executor.run(batch)

    return round(1e3 * len(rows) / median_ms(work, 3))


def measure(name: str, folder: Path, sm: int) -> list[dict[str, Any]]:
    """A line a batch, and one for many texts."""
    cfg = CONFIGS[name]
    weights = random_weights(cfg, folder)
    made = build(cfg, EMBED, weights, CudaOptions(sm=sm))
    bundle = write_bundle(folder / "bundle", cfg, EMBED, weights, max_length=LONGEST, plan=made)
    lines: list[dict[str, Any]] = []
    with (
        bei.load(bundle, target=ONNXRUNTIME, allow_unverified=True) as peer,
        bei.load(bundle, target=f"cuda-sm{sm}", allow_unverified=True) as ours,
    ):
        record = peer.choice.record
        session = load(bundle, record, providers(0))
        timed = Timed(made, bundle)
        for batch, lengths in BATCHES.items():
            rows = rows_of(lengths)
            found = {
                "ONNX Runtime CUDA ms": bound_ms(session, record.inputs, EMBED.output, lengths),
                "bei ms": timed.device_ms(lengths),
                "ONNX Runtime CUDA, whole call": median_ms(partial(peer.executor.run, rows)),
                "bei, whole call": median_ms(partial(ours.executor.run, rows)),
            }
            line = {"model": name, "batch": batch} | {what: round(ms, 3) for what, ms in found.items()}
            vectors = [np.asarray(model.executor.run(rows)) for model in (peer, ours)]
            lines.append(line | {"cosine min": round(cosine(*vectors), 6)})
            print(lines[-1], flush=True)
        timed.engine.close()
        rows = rows_of(lognormal(TEXTS))
        rates = {
            "ONNX Runtime CUDA, texts/s": texts_a_second(peer, rows),
            "bei, texts/s": texts_a_second(ours, rows),
        }
        lines.append({"model": name, "batch": f"{TEXTS} lognormal"} | rates)
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="h200")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(CONFIGS))
    args = parser.parse_args()
    onnxruntime.preload_dlls()
    major, minor = torch.cuda.get_device_capability()
    lines: list[dict[str, Any]] = []
    for name in args.models:
        with tempfile.TemporaryDirectory() as temporary:
            lines += measure(name, Path(temporary), 10 * major + minor)
        what = f"ONNX Runtime {onnxruntime.__version__} CUDA, fp16, {torch.cuda.get_device_name()}"
        save(f"{args.out}/onnxruntime_cuda", what, lines)


if __name__ == "__main__":
    main()
