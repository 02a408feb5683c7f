"""MiniLM from texts to vectors, and from a new process to the first vector: bei's CUDA engine and its peer.

python -m benchmarks.cuda_whole --bundle minilm.bundle [--out h200] [--alone]

The bundle is all-MiniLM-L6-v2 compiled for this GPU; ``--alone`` leaves the peer out. Needs the extras cuda and parity.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.minilm import lognormal_texts
from benchmarks.record import save

import bei

TEXTS = 8000
COLD = {
    "bei": "import sys, bei; m = bei.load(sys.argv[1], allow_unverified=True); "
    "assert m.target.startswith('cuda'); assert m.encode(['a first text']).shape == (1, 384)",
    "sentence-transformers": "import sys, torch\nfrom sentence_transformers import SentenceTransformer\n"
    "m = SentenceTransformer(sys.argv[2], device='cuda', model_kwargs={'dtype': torch.float16})\n"
    "assert m.encode(['a first text']).shape == (1, 384)",
}


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """After one run to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def end_to_end(bundle: Path, checkpoint: Path, *, alone: bool) -> tuple[list[dict[str, Any]], float]:
    """Texts a second, tokeniser included; and the smallest cosine with sentence-transformers in fp32 (``alone``: 1)."""
    texts = lognormal_texts(TEXTS)
    lines: list[dict[str, Any]] = []

    def measure(what: str, work: Callable[[], Any], repeats: int) -> None:
        lines.append({"what": what, "texts/s": round(TEXTS / median_seconds(work, repeats))})
        print(lines[-1], flush=True)

    with bei.load(bundle, allow_unverified=True) as model:
        tokenise = partial(model.tokenizer.encode, texts, max_length=model.max_length)
        measure("bei's tokeniser alone", tokenise, 7)
        measure(f"bei, {model.target}", partial(model.encode, texts), 7)
        ours = model.encode(texts[:512])
    if alone:
        return lines, 1.0
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(checkpoint), device="cuda", model_kwargs={"dtype": torch.float16})
    for batch in (32, 1024):
        measure(
            f"sentence-transformers fp16, batch {batch}", partial(peer.encode, texts, batch_size=batch), 2
        )
    want = np.asarray(peer.float().encode(texts[:512], batch_size=64, normalize_embeddings=True))
    return lines, float((want * ours).sum(-1).min())


def cold_start(bundle: Path, checkpoint: Path, rounds: int = 5, *, alone: bool) -> list[dict[str, Any]]:
    """Seconds, the two taking turns."""
    codes = {name: code for name, code in COLD.items() if name == "bei" or not alone}
    times: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(rounds):
        for name, code in codes.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code, str(bundle), str(checkpoint)], check=True)
            times[name].append(round(time.perf_counter() - start, 2))
    return [{"what": name, "median s": statistics.median(took), "all": took} for name, took in times.items()]


def hugging_face_folder(bundle: Path, folder: Path) -> Path:
    """The bundle's checkpoint as sentence-transformers reads it."""
    source = bundle / "source"
    for file in (path for path in source.rglob("*") if path.is_file()):
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    (folder / "model.safetensors").write_bytes((bundle / "model.safetensors").read_bytes())
    return folder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", default="h200")
    parser.add_argument("--alone", action="store_true")
    args = parser.parse_args()
    gpu = torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = hugging_face_folder(args.bundle, Path(temporary))
        cold = cold_start(args.bundle, checkpoint, alone=args.alone)
        save(
            f"{args.out}/cuda_cold_start",
            f"New process to first vector, MiniLM-L6 (weights in fp16), {gpu}",
            cold,
        )
        lines, cosine = end_to_end(args.bundle, checkpoint, alone=args.alone)
        title = f"{TEXTS} texts of 67 tokens to vectors, MiniLM-L6, {gpu}"
        title += "" if args.alone else f"; smallest cosine with fp32 {cosine:.7f}"
        save(f"{args.out}/cuda_end_to_end", title, lines)


if __name__ == "__main__":
    main()
