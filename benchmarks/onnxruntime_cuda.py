"""ONNX Runtime CUDA beside the CUDA engine on one GPU: device-side milliseconds of a batch, inputs bound once.

python -m benchmarks.onnxruntime_cuda [--out h200]

Random weights, fp16; ONNX Runtime's batches are padded to the longest text. Wall time of a run until its output is
ready, medians; the cosine is between the two engines. Needs onnxruntime-gpu, the extra cuda and PyTorch.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from benchmarks.cubins import build
from benchmarks.cuda_engine import Timed
from benchmarks.cuda_models import Lengths, ragged, rows_of
from benchmarks.cuda_shapes import CONFIGS, EMBED, cosine, random_weights
from benchmarks.record import save

from bei.compiler.engines.onnxruntime import cuda_policy
from bei.compiler.lowering.cuda_options import CudaOptions
from bei.compiler.lowering.emit import EmittedGraph, emit
from bei.compiler.precision.policy import PLAIN
from bei.runtime.executors.onnxruntime_cuda import MULTIPLE, PROVIDER
from bei.runtime.packing import pad

MODELS = ("bert-base", "minilm-l6", "nomic-v1.5", "modernbert-base")
BATCHES: dict[str, Lengths] = {
    "128 × 128": [128] * 128,
    "32 × 512": [512] * 32,
    "ragged 16 k": ragged(16005),
    "1 × 32": [32],
}


def open_session(graph: EmittedGraph, folder: Path) -> "onnxruntime.InferenceSession":
    """As the executor opens it, without a bundle."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    provider = (PROVIDER, {"use_tf32": "0", "enable_skip_layer_norm_strict_mode": "1"})
    session = onnxruntime.InferenceSession(graph.serialize(), options, providers=[provider])
    assert PROVIDER in session.get_providers(), "ONNX Runtime fell back to the CPU"
    return session


def measure(session: Any, graph: EmittedGraph, lengths: Lengths, repeats: int = 15) -> tuple[float, Any]:
    """Median milliseconds, and the vectors."""
    arrays = pad(rows_of(lengths), 0, np.int32, multiple=MULTIPLE)
    binding = session.io_binding()
    for name in graph.inputs:
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(arrays[name], "cuda", 0))
    binding.bind_output(graph.output, "cuda", 0)
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[3:]), binding.get_outputs()[0].numpy()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="h200")
    args = parser.parse_args()
    onnxruntime.preload_dlls()
    major, minor = torch.cuda.get_device_capability()
    lines: list[dict[str, Any]] = []
    for model in MODELS:
        with tempfile.TemporaryDirectory() as temporary:
            folder, cfg = Path(temporary), CONFIGS[model]
            weights = random_weights(cfg, folder)
            graph = emit(cfg, EMBED, weights, cuda_policy(cfg, PLAIN))
            session = open_session(graph, folder)
            timed = Timed(build(cfg, EMBED, weights, CudaOptions(sm=10 * major + minor)), folder)
            for batch, lengths in BATCHES.items():
                took, vectors = measure(session, graph, lengths)
                ours = np.asarray(timed.engine.run(rows_of(lengths)))
                line = {"model": model, "batch": batch, "ONNX Runtime CUDA ms": round(took, 3)}
                line |= {
                    "bei ms": round(timed.device_ms(lengths), 3),
                    "cosine min": round(cosine(vectors, ours), 6),
                }
                lines.append(line)
                print(line, flush=True)
            timed.engine.close()
        what = f"ONNX Runtime {onnxruntime.__version__} CUDA, fp16, {torch.cuda.get_device_name()}"
        save(f"{args.out}/onnxruntime_cuda", what, lines)


if __name__ == "__main__":
    main()
