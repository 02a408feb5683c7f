"""The CUDA engine against Hugging Face on one GPU, in one run: device times, end to end, cold start.

python -m benchmarks.cuda_engine --bundle minilm.bundle [--out h200]

The bundle is all-MiniLM-L6-v2 compiled for this GPU; every other model has random weights. Needs the extras cuda and
parity. Device times are medians of CUDA events around a replay (bei) or a call (peers); fp16 everywhere.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.cuda_models import make, read
from benchmarks.minilm import lognormal_texts
from benchmarks.record import save

import bei
from bei.adapters.head import Head, Normalize
from bei.compiler.engines.cuda import CudaOptions, build
from bei.compiler.lowering.cuda_ops import Gelu
from bei.cuda_plan import Launch
from bei.runtime.cuda.engine import Engine
from bei.runtime.cuda.gpu import Gpu
from bei.runtime.executor import Row

EMBED = Head(task="embed", pooling=("mean",), steps=(Normalize(),))
Lengths = Sequence[int]
Line = dict[str, Any]


def rows_of(lengths: Lengths, seed: int = 0) -> list[Row]:
    """Random ids."""
    rng = np.random.default_rng(seed)
    return [Row(ids=rng.integers(5, 30000, n).astype(np.int32), types=np.zeros(n, np.int32)) for n in lengths]


def ragged(tokens: int, longest: int = 512) -> list[int]:
    """Lognormal lengths (mean about 100) that make up ``tokens``."""
    rng = np.random.default_rng(0)
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(int(min(longest, tokens - sum(lengths), max(3, rng.lognormal(4.2, 0.9)))))
    return lengths


class Timed:
    """One model on the GPU: the engine, and Hugging Face's own in fp16."""

    def __init__(self, name: str, gelu: Gelu, folder: Path) -> None:
        cfg, weights = read(folder)
        major, minor = torch.cuda.get_device_capability()
        plan = build(cfg, EMBED, weights, CudaOptions(sm=10 * major + minor, gelu=gelu))
        self.name, self.gpu = name, Gpu("benchmark")
        self.engine = Engine(self.gpu, plan, folder)

    def device_ms(self, lengths: Lengths, repeats: int = 40) -> float:
        """Median of graph replays."""
        _, graph = self.engine.prepare(rows_of(lengths))
        return self.median(lambda: self.gpu.replay(graph), repeats)

    def median(self, work: Callable[[], None], repeats: int = 40) -> float:
        for _ in range(5):
            work()
        times = []
        for _ in range(repeats):
            start = self.gpu.timer()
            work()
            times.append(self.gpu.elapsed(start, self.gpu.timer()))
        return statistics.median(times)

    def wall_ms(self, lengths: Lengths, repeats: int = 50) -> float:
        """Median of whole calls: assemble, copy, compute, copy back."""
        rows = rows_of(lengths)
        self.engine.run(rows)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            self.engine.run(rows)
            times.append(time.perf_counter() - start)
        return 1e3 * statistics.median(times)

    def steps(self, lengths: Lengths) -> list[Line]:
        """Every kind of step by itself: ten in a graph, so that launch gaps do not count."""
        batch, _ = self.engine.prepare(rows_of(lengths))
        seen: dict[str, list[Any]] = {}
        for step in self.engine.plan.steps:
            seen.setdefault(_kind(step), []).append(step)
        lines = []
        for kind, same in seen.items():
            graph = self.gpu.capture(lambda s=same[0]: [self.engine.queue(s, batch.sizes) for _ in range(10)])  # type: ignore[misc]
            each = 100 * self.median(lambda g=graph: self.gpu.replay(g), 20)  # type: ignore[misc]
            total = each * len(same) / 1e3
            lines.append({"step": kind, "times": len(same), "µs each": round(each, 1), "ms": round(total, 3)})
        return lines

    def close(self) -> None:
        self.engine.close()


def _kind(step: Any) -> str:
    if isinstance(step, Launch):
        return step.op
    return f"product {step.x.width} → {step.out.width}" + (
        f" + {step.epilogue}" if step.epilogue != "none" else ""
    )


def torch_ms(model: Any, lengths: Lengths, repeats: int = 20) -> float:
    """Hugging Face in fp16 with SDPA, padded, mean-pooled: median of events."""
    ids, mask = padded(rows_of(lengths))

    def call() -> None:
        with torch.inference_mode():
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
            summed = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            torch.nn.functional.normalize(summed.float(), dim=-1)

    for _ in range(5):
        call()
    times = []
    for _ in range(repeats):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times)


def padded(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and mask [B, L] on the GPU."""
    longest = max(row.ids.size for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for line, row in enumerate(rows):
        ids[line, : row.ids.size] = torch.from_numpy(row.ids.astype(np.int64))
        mask[line, : row.ids.size] = 1
    return ids.cuda(), mask.cuda()


WORKLOADS: tuple[tuple[str, str, Lengths], ...] = (
    ("bert-base", "128 × 128", [128] * 128),
    ("bert-base", "ragged 16 k, ≤ 512", ragged(16005)),
    ("bert-base", "1 × 32", [32]),
    ("bert-large", "128 × 128", [128] * 128),
    ("minilm-l6", "128 × 128", [128] * 128),
    ("minilm-l6", "ragged 16 k, ≤ 512", ragged(16005)),
    ("minilm-l6", "1 × 32", [32]),
)


def device_table(folder: Path) -> tuple[list[Line], list[Line], list[Line]]:
    """Workloads with peers; the steps of BERT-base; throughput by batch size."""
    lines: list[Line] = []
    steps: list[Line] = []
    scaling: list[Line] = []
    for name in dict.fromkeys(model for model, _, _ in WORKLOADS):
        peer = make(name, folder / name).half().cuda()
        compiled = torch.compile(peer, dynamic=False) if name != "bert-large" else None
        engines: dict[Gelu, Timed] = {gelu: Timed(name, gelu, folder / name) for gelu in ("erf", "tanh")}
        for _, shape, lengths in (work for work in WORKLOADS if work[0] == name):
            lines.append(_compare(name, shape, lengths, engines, peer, compiled))
            print(lines[-1], flush=True)
        if name == "bert-base":
            steps = [{"gelu": gelu, **line} for gelu, e in engines.items() for line in e.steps([128] * 128)]
            for tokens in (256, 1024, 4096, 16384, 65536):
                ms = engines["erf"].device_ms([128] * (tokens // 128))
                scaling.append(
                    {"tokens": tokens, "ms": round(ms, 3), "M tokens/s": round(tokens / ms / 1e3, 2)}
                )
        for engine in engines.values():
            engine.close()
        del peer, compiled
        torch.cuda.empty_cache()
    return lines, steps, scaling


def _compare(
    name: str, shape: str, lengths: Lengths, engines: dict[Gelu, Timed], peer: Any, compiled: Any
) -> Line:
    line: Line = {"model": name, "batch": shape, "texts": len(lengths), "tokens": sum(lengths)}
    line["HF SDPA ms"] = round(torch_ms(peer, lengths), 3)
    if compiled is not None and len(set(lengths)) == 1:
        line["torch.compile ms"] = round(torch_ms(compiled, lengths), 3)
    for gelu, timed in engines.items():
        line[f"bei {gelu} ms"] = round(timed.device_ms(lengths), 3)
    line["bei erf call ms"] = round(engines["erf"].wall_ms(lengths), 3)
    line["M tokens/s"] = round(sum(lengths) / line["bei erf ms"] / 1e3, 2)
    line["cosine min"] = round(_cosine(engines["erf"], peer, lengths), 6)
    return line


def _cosine(timed: Timed, peer: Any, lengths: Lengths) -> float:
    """Smallest cosine with Hugging Face in fp32."""
    rows = rows_of(lengths)
    ids, mask = padded(rows)
    peer.float()
    with torch.inference_mode():
        hidden = torch.cat(
            [
                peer(input_ids=i, attention_mask=m).last_hidden_state
                for i, m in zip(ids.split(16), mask.split(16), strict=True)
            ]
        )
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    peer.half()
    want = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
    return float((want * np.asarray(timed.engine.run(rows))).sum(-1).min())


def end_to_end(bundle: Path, checkpoint: Path, count: int = 8000) -> list[Line]:
    """Texts to vectors, tokeniser included; and what the tokeniser does alone."""
    from sentence_transformers import SentenceTransformer

    texts = lognormal_texts(count)
    lines: list[Line] = []

    def measure(what: str, work: Callable[[], Any], repeats: int = 5) -> Any:
        result = work()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        lines.append({"what": what, "texts/s": round(count / statistics.median(times))})
        print(lines[-1], flush=True)
        return result

    with bei.load(bundle, allow_unverified=True) as model:
        measure("tokeniser alone", lambda: model.tokenizer.encode(texts, max_length=model.max_length))
        ours = measure(f"bei, {model.target}", lambda: model.encode(texts))
    peer = SentenceTransformer(str(checkpoint), device="cuda", model_kwargs={"dtype": torch.float16})
    for batch in (32, 1024):
        measure(
            f"sentence-transformers fp16, batch {batch}", lambda b=batch: peer.encode(texts, batch_size=b), 2
        )  # type: ignore[misc]
    peer.float()
    want = peer.encode(texts[:512], batch_size=64, normalize_embeddings=True)
    cosines = (np.asarray(want) * ours[:512]).sum(-1)
    lines.append(
        {"what": "cosine with sentence-transformers fp32, min of 512", "texts/s": float(cosines.min())}
    )
    return lines


COLD = {
    "bei": "import sys, bei; m = bei.load(sys.argv[1], allow_unverified=True); "
    "assert m.target.startswith('cuda'); assert m.encode(['a first text']).shape == (1, 384)",
    "sentence-transformers": "import sys, torch\nfrom sentence_transformers import SentenceTransformer\n"
    "m = SentenceTransformer(sys.argv[2], device='cuda', model_kwargs={'dtype': torch.float16})\n"
    "assert m.encode(['a first text']).shape == (1, 384)",
}


def cold_start(bundle: Path, checkpoint: Path, rounds: int = 3) -> list[Line]:
    """New process to first vector, seconds."""
    times: dict[str, list[float]] = {name: [] for name in COLD}
    for _ in range(rounds):
        for name, code in COLD.items():
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", code, str(bundle), str(checkpoint)], check=True, env=os.environ
            )
            times[name].append(time.perf_counter() - start)
    return [
        {"what": name, "median s": round(statistics.median(t), 2), "all s": [round(x, 2) for x in t]}
        for name, t in times.items()
    ]


def hugging_face_folder(bundle: Path, folder: Path) -> Path:
    """The bundle's checkpoint as sentence-transformers reads it."""
    for file in (bundle / "source").rglob("*"):
        if file.is_file():
            target = folder / file.relative_to(bundle / "source")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    (folder / "model.safetensors").write_bytes((bundle / "model.safetensors").read_bytes())
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", default="h200")
    args = parser.parse_args()
    gpu = torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = hugging_face_folder(args.bundle, folder / "checkpoint")
        save(
            f"{args.out}/cuda_cold_start",
            f"New process to first vector, MiniLM-L6, {gpu}",
            cold_start(args.bundle, checkpoint),
        )
        save(
            f"{args.out}/cuda_end_to_end",
            f"8,000 texts of 67 tokens to vectors, MiniLM-L6, {gpu}",
            end_to_end(args.bundle, checkpoint),
        )
        lines, steps, scaling = device_table(folder)
        save(f"{args.out}/cuda_device", f"Device time of a batch, fp16, {gpu}", lines)
        save(f"{args.out}/cuda_steps", f"BERT-base 128 × 128, each step by itself, {gpu}", steps)
        save(f"{args.out}/cuda_scaling", f"BERT-base, texts of 128 tokens, by batch size, {gpu}", scaling)


if __name__ == "__main__":
    main()
