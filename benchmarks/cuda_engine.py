"""The CUDA engine against Hugging Face on one GPU, device times, in one run.

python -m benchmarks.cuda_engine [--out h200] [--models bert-base …] [--alone]

Random weights, fp16. Times are medians of CUDA events around a graph replay (bei) or a call (peers, padded); "with copies"
counts the ids' way in and the vectors' way out. ``tanh`` is the engine with erf-GELU approximated in the product's epilogue, ``fp16 stream`` what the precision policy chooses for a
pre-norm model where it holds.
``--alone``: without peers, and so without transformers and the minutes that torch.compile takes.
TFLOP/s count products and attention over real tokens; beside them, the share of what this card's 8192³ product reaches in
the same run. Needs the extras cuda and parity.
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
import torch
from benchmarks.cubins import build, origin
from benchmarks.cuda_counts import plan_flops, step_bytes, step_flops
from benchmarks.cuda_models import SHAPES, Lengths, make, padded, ragged, read, rows_of
from benchmarks.cuda_shapes import CONFIGS, EMBED, random_weights
from benchmarks.record import save

from bei.compiler.lowering.cuda_options import CudaOptions, Gelu, Stream
from bei.cuda_plan import ITEMSIZE, Launch, Plan, Step
from bei.runtime.cuda.batch import Batch
from bei.runtime.cuda.engine import Engine
from bei.runtime.cuda.gpu import Gpu

Line = dict[str, Any]
UNIFORM, LONG, RAGGED, ONE = [128] * 128, [512] * 32, ragged(16005), [32]
WORKLOADS: dict[str, dict[str, Lengths]] = {
    "bert-base": {"128 × 128": UNIFORM, "ragged 16 k, ≤ 512": RAGGED, "1 × 32": ONE},
    "bert-large": {"128 × 128": UNIFORM},
    "minilm-l6": {"128 × 128": UNIFORM, "ragged 16 k, ≤ 512": RAGGED, "1 × 32": ONE},
    **{
        name: {"32 × 512": LONG, "ragged 16 k, ≤ 512": RAGGED}
        for name in ("modernbert-base", "nomic-v1.5", "qwen3-0.6b", "embeddinggemma")
    },
}


def built(folder: Path, gelu: Gelu = "erf", stream: Stream | None = None) -> "Timed":
    """The model of a folder."""
    cfg, weights = read(folder)
    major, minor = torch.cuda.get_device_capability()
    return Timed(
        build(cfg, EMBED, weights, CudaOptions(sm=10 * major + minor, gelu=gelu, stream=stream)), folder
    )


class Timed:
    """One plan as an engine on the GPU."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.gpu = Gpu("benchmark")
        self.engine = Engine(self.gpu, plan, folder)

    def device_ms(self, lengths: Lengths) -> float:
        """Median of graph replays."""
        _, graph = self.engine.prepare(rows_of(lengths))
        return self.median(partial(self.gpu.replay, graph))

    def copied_ms(self, lengths: Lengths) -> float:
        """The same with the copies of ids to the device and of vectors back."""
        engine, rows = self.engine, rows_of(lengths)
        engine.run(rows)
        batch, graph = engine.prepare(rows)
        ids = self.gpu.pinned(batch.data.nbytes)
        ids[:] = batch.data.view(np.uint8)
        plan = engine.plan
        vectors = self.gpu.pinned(len(lengths) * plan.output.stride * ITEMSIZE[plan.output.dtype])

        def work() -> None:
            self.gpu.upload(engine.input_address, ids)
            self.gpu.replay(graph)
            self.gpu.download(vectors, engine.output_address(batch))

        return self.median(work)

    def median(self, work: Callable[[], None], repeats: int = 40) -> float:
        """Milliseconds, after five runs to warm up."""
        for _ in range(5):
            work()
        times = []
        for _ in range(repeats):
            start = self.gpu.timer()
            work()
            times.append(self.gpu.elapsed(start, self.gpu.timer()))
        return statistics.median(times)

    def call_ms(self, lengths: Lengths, repeats: int = 50) -> float:
        """Median of whole calls on the host's clock: assemble, copy, compute, copy back."""
        rows = rows_of(lengths)
        self.engine.run(rows)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            self.engine.run(rows)
            times.append(time.perf_counter() - start)
        return 1e3 * statistics.median(times)

    def steps(self, lengths: Lengths) -> list[Line]:
        """Every kind of step by itself, ten in a graph so that launch gaps do not count."""
        batch, _ = self.engine.prepare(rows_of(lengths))
        kinds: dict[str, list[Step]] = {}
        for step in self.engine.schedule(batch.sizes).steps:
            kinds.setdefault(_kind(step), []).append(step)
        lines = []
        for kind, same in kinds.items():
            graph = self.gpu.capture(partial(self._ten, same[0], batch))
            each = 100 * self.median(partial(self.gpu.replay, graph), 20)
            flops, moved = (
                step_flops(same[0], lengths),
                step_bytes(self.engine.plan, same[0], lengths),
            )
            lines.append(
                {
                    "step": kind,
                    "times": len(same),
                    "µs each": round(each, 1),
                    "ms": round(each * len(same) / 1e3, 3),
                    "TFLOP/s": round(flops / each / 1e6) if flops else "",
                    "GB/s": round(moved / each / 1e3),
                }
            )
        return lines

    def _ten(self, step: Step, batch: Batch) -> None:
        for _ in range(10):
            self.engine.queue(step, batch.sizes)


def _kind(step: Step) -> str:
    if isinstance(step, Launch):
        window = step.attrs.get("window")
        if step.op in ("linear", "linear_norm"):
            x, out = step.operands["x"], step.operands["out"]
            assert x and out
            if step.op == "linear_norm":
                return f"linear {x.width} → {out.width}, norm"
            gate = "gated " if step.attrs["gated"] else ""
            return f"linear {x.width} → {out.width}, {gate}{step.attrs['act']}"
        return step.op + (f", window {window}" if window is not None else "")
    epilogue = "" if step.epilogue == "none" else f" + {step.epilogue}"
    return f"product {step.x.width} → {step.out.width}{epilogue}"


def torch_ms(model: Any, lengths: Lengths, repeats: int = 20) -> float:
    """The model's own class, padded, mean-pooled: median of events."""
    ids, mask = padded(rows_of(lengths))
    clock: Any = torch.cuda.Event
    times = []
    for turn in range(repeats + 5):
        start, stop = clock(enable_timing=True), clock(enable_timing=True)
        start.record()
        with torch.inference_mode():
            _pooled(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask)
        stop.record()
        stop.synchronize()
        if turn >= 5:
            times.append(float(start.elapsed_time(stop)))
    return statistics.median(times)


def _pooled(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize(mean.float(), dim=-1)


def cosine_min(engine: Engine, model: Any, lengths: Lengths) -> float:
    """Smallest cosine with the model's own class in fp32, sixteen rows at a time."""
    rows = rows_of(lengths)
    got = np.asarray(engine.run(rows))
    model.float()
    smallest = 1.0
    for first in range(0, len(rows), 16):
        ids, mask = padded(rows[first : first + 16])
        with torch.inference_mode():
            want = _pooled(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask).cpu().numpy()
        smallest = min(smallest, float((want * got[first : first + 16]).sum(-1).min()))
    model.half()
    return smallest


def matmul_rate(n: int = 8192) -> float:
    """TFLOP/s of an n³ product of random fp16 matrices through PyTorch: what this card gives now."""
    a, b = (torch.randn(n, n, device="cuda").half() for _ in range(2))
    clock: Any = torch.cuda.Event
    times = []
    for turn in range(25):
        start, stop = clock(enable_timing=True), clock(enable_timing=True)
        start.record()
        a @ b
        stop.record()
        stop.synchronize()
        if turn >= 5:
            times.append(float(start.elapsed_time(stop)))
    return 2 * n**3 / statistics.median(times) / 1e9


def compare(name: str, folder: Path) -> list[Line]:
    """One line a workload: peers and engines side by side."""
    ceiling = matmul_rate()
    peer = make(name, folder).half().cuda()
    compiled = torch.compile(peer)
    plain = built(folder)
    others: dict[str, Timed] = {}
    if plain.engine.plan.stream == "f32":
        others["bei, fp16 stream"] = built(folder, stream="f16")
    if SHAPES[name][0] == "Bert":
        others["bei, tanh"] = built(folder, "tanh")
    lines = []
    for batch, lengths in WORKLOADS[name].items():
        line: Line = {
            "model": name,
            "batch": batch,
            "texts": len(lengths),
            "HF SDPA": torch_ms(peer, lengths),
        }
        if len(set(lengths)) == 1:
            line["torch.compile"] = torch_ms(compiled, lengths)
        best = min(value for key, value in line.items() if key in ("HF SDPA", "torch.compile"))
        line["bei"] = plain.device_ms(lengths)
        line |= {what: timed.device_ms(lengths) for what, timed in others.items()}
        line["bei, whole call"] = plain.call_ms(lengths)
        line["times faster"] = best / line["bei"]
        line["bei, with copies"] = plain.copied_ms(lengths)
        line["M tokens/s"] = sum(lengths) / line["bei"] / 1e3
        line["TFLOP/s"] = plan_flops(plain.engine.plan, lengths) / line["bei"] / 1e9
        line["of 8192³"] = line["TFLOP/s"] / ceiling
        line |= {key: round(value, 3) for key, value in line.items() if isinstance(value, float)}
        line["cosine min"] = round(cosine_min(plain.engine, peer, lengths), 6)
        lines.append(line)
        print(line, flush=True)
    for timed in (plain, *others.values()):
        timed.engine.close()
    del peer, compiled
    torch.cuda.empty_cache()
    return lines


def alone(name: str, folder: Path) -> tuple[list[Line], list[Line]]:
    """A line a workload of the engine as the precision policy builds it where an fp16 stream holds, and its steps."""
    ceiling, cfg = matmul_rate(), CONFIGS[name]
    folder.mkdir()
    stream: Stream | None = None if cfg.placement == "post" else "f16"
    plan = build(cfg, EMBED, random_weights(cfg, folder), CudaOptions(sm=90, stream=stream))
    timed = Timed(plan, folder)
    lines = []
    for batch, lengths in WORKLOADS[name].items():
        ms = timed.device_ms(lengths)
        rate = plan_flops(plan, lengths) / ms / 1e9
        line: Line = {
            "model": name, "batch": batch, "texts": len(lengths), "stream": plan.stream, "ms": ms,
            "with copies": timed.copied_ms(lengths), "whole call": timed.call_ms(lengths),
            "M tokens/s": sum(lengths) / ms / 1e3, "TFLOP/s": rate, "of 8192³": rate / ceiling,
        }  # fmt: skip
        lines.append({k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()})
        print(lines[-1], flush=True)
    batch, lengths = next(iter(WORKLOADS[name].items()))
    steps = [{"model": name, "batch": batch, **line} for line in timed.steps(lengths)]
    timed.engine.close()
    return lines, steps


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="h200")
    parser.add_argument("--models", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--alone", action="store_true")
    args = parser.parse_args()
    gpu = torch.cuda.get_device_name()
    lines: list[Line] = []
    steps: list[Line] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.models:
            folder = Path(temporary) / name
            if args.alone:
                more, each = alone(name, folder)
            else:
                more, timed = compare(name, folder), built(folder)
                batch, lengths = next(iter(WORKLOADS[name].items()))
                each = [{"model": name, "batch": batch, **line} for line in timed.steps(lengths)]
                timed.engine.close()
            lines, steps = lines + more, steps + each
            what = "cuda_alone" if args.alone else "cuda_device"
            save(f"{args.out}/{what}", f"Device milliseconds of a batch, fp16, {gpu}, {origin()}", lines)
            save(f"{args.out}/cuda_steps", f"Each step by itself, {gpu}, {origin()}", steps)


if __name__ == "__main__":
    main()
