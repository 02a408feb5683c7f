"""What the run-time guard costs: encoding with and without it, interleaved in one run, and what a rescue takes.

python -m benchmarks.guard [--texts 600] [--rounds 5]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from benchmarks.minilm import checkpoint, lognormal_texts
from benchmarks.record import save, spread

import bei
from bei.compiler.build import compile_bundle
from bei.compiler.options import BuildOptions
from bei.runtime.executor import Executor
from bei.runtime.executors import registry
from bei.runtime.model import Model
from bei.runtime.outputs import non_finite
from bei.runtime.rescue import Rescue, Spare

TARGET = "onnxruntime-cpu"


def main() -> None:
    """Both variants in turn, then the guard's parts by themselves."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        bundle = Path(temporary) / "minilm.bundle"
        compile_bundle(BuildOptions(repo=str(checkpoint()), out=bundle, targets=(TARGET,)))
        with bei.load(bundle, threads=2, allow_unverified=True) as model:
            rows = encoding(model, options.texts, options.rounds) + parts(model)
    save("guard", f"Run-time guard, all-MiniLM-L6-v2 fp32 on the CPU, {options.texts} texts, 2 threads", rows)


def encoding(model: Model, count: int, rounds: int) -> list[dict[str, str]]:
    """Texts a second, with the search for NaN and without it."""
    texts = lognormal_texts(count)
    searches: dict[str, Callable[..., list[int]]] = {"guard": non_finite, "no guard": lambda rows: []}
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    model.encode(texts)
    for _ in range(rounds):
        for name, search in searches.items():
            with patch("bei.runtime.model.non_finite", search):
                seconds[name].append(timed(lambda: model.encode(texts)))
    return [
        {"what": f"encode, {name}", "result": f"{spread([count / t for t in found], 1)} texts/s"}
        for name, found in seconds.items()
    ]


def parts(model: Model) -> list[dict[str, str]]:
    """The search alone, and a rescue with and without the engine's start."""
    outputs = np.random.default_rng(0).standard_normal((512, 384)).astype(np.float32)
    found = [timed(lambda: non_finite(outputs)) for _ in range(100)]
    (row,) = model.tokenizer.encode(lognormal_texts(1), max_length=model.max_length)
    record = model.choice.record

    def start() -> Executor:
        return registry.create(model.bundle.path, record, model.manifest, threads=2)

    rescue = Rescue(Spare(target=record.target, budget=model.budget, start=start))
    first = timed(lambda: rescue.outputs({0: row}))
    later = [timed(lambda: rescue.outputs({0: row})) for _ in range(20)]
    rescue.close()
    return [
        {"what": "search of 512 vectors of 384", "result": f"{spread([1e6 * t for t in found], 0)} µs"},
        {"what": "first rescue, engine's start included", "result": f"{1e3 * first:.0f} ms"},
        {
            "what": f"later rescues of a row of {len(row.ids)} tokens",
            "result": f"{spread([1e3 * t for t in later], 1)} ms",
        },
    ]


def timed(run: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
