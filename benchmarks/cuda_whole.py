"""MiniLM from texts to vectors, and from a new process to the first vector: bei's GPU engines and their peers.

python -m benchmarks.cuda_whole --bundle minilm.bundle [--out h200] [--alone] [--rounds 5]

The bundle is all-MiniLM-L6-v2 compiled for this GPU; every GPU engine of it that runs here is measured, then, in the same run
and on the same texts, sentence-transformers and, where it is installed, Infinity. ``--alone`` leaves the peers out,
``--rounds 0`` the new processes. Needs the extras cuda and parity.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from benchmarks.infinity import embedder
from benchmarks.minilm import lognormal_texts, prose_texts
from benchmarks.record import save

import bei
from bei.runtime.bundle import read_bundle
from bei.runtime.executor import Output
from bei.runtime.executors import registry

TEXTS = 8000
COMPARED = 512
COLD = {
    "bei": "import sys, bei; m = bei.load(sys.argv[1], allow_unverified=True); "
    "assert m.target.startswith('cuda'); assert m.encode(['a first text']).shape == (1, 384)",
    "sentence-transformers": "import sys, torch\nfrom sentence_transformers import SentenceTransformer\n"
    "m = SentenceTransformer(sys.argv[2], device='cuda', model_kwargs={'dtype': torch.float16})\n"
    "assert m.encode(['a first text']).shape == (1, 384)",
}


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """After one run to warm up."""
    work()
    return statistics.median(seconds(work) for _ in range(repeats))


Lines = list[dict[str, Any]]


def timed(lines: Lines, what: str, work: Callable[[], Any], repeats: int) -> None:
    lines.append({"what": what, "texts/s": round(TEXTS / median_seconds(work, repeats))})
    print(lines[-1], flush=True)


def targets_here(bundle: Path) -> list[str]:
    """Its GPU engines that run on this machine, in order of preference."""
    manifest = read_bundle(bundle).manifest
    records = [manifest.engine(target) for target in manifest.fallback]
    return [r.target for r in records if r.device == "cuda" and registry.available(r) is None]


def ours(bundle: Path, texts: list[str]) -> tuple[Lines, dict[str, Output]]:
    """Texts a second, tokeniser included, of every engine; and the first vectors of each."""
    lines: Lines = []
    vectors = {}
    prose = prose_texts(TEXTS)
    for target in targets_here(bundle):
        with bei.load(bundle, target=target, allow_unverified=True) as model:
            if not lines:
                lines += tokenizers_alone(model, texts)
            timed(lines, f"bei, {target}", partial(model.encode, texts), 7)
            first = seconds(partial(model.encode, prose))
            rows = model.tokenizer.encode(prose, max_length=model.max_length)
            what = f"bei, {target}, prose of {sum(len(row.ids) for row in rows) / TEXTS:.0f} tokens"
            lines.append({"what": f"{what}, first time", "texts/s": round(TEXTS / first)})
            timed(lines, f"{what}, again", partial(model.encode, prose), 3)
            vectors[target] = model.encode(texts[:COMPARED])
    return lines, vectors


def tokenizers_alone(model: bei.Model, texts: list[str]) -> Lines:
    """The library's fastest call, which gives its own objects, and bei's, which gives rows."""
    library = tokenizers.Tokenizer.from_file(str(model.bundle.path / model.manifest.tokenizer.file))
    library.no_truncation()
    library.no_padding()
    lines: Lines = []
    timed(lines, "tokenizers' encode_batch_fast alone", partial(library.encode_batch_fast, texts), 7)
    tokenise = partial(model.tokenizer.encode, texts, max_length=model.max_length)
    timed(lines, "bei's tokeniser alone", tokenise, 7)
    return lines


def exact(checkpoint: Path, texts: list[str]) -> Output:
    """Vectors of sentence-transformers in fp32; before Infinity, whose import allows TF32."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(checkpoint), device="cuda")
    return np.asarray(model.encode(texts, batch_size=64, normalize_embeddings=True))


def peers(checkpoint: Path, texts: list[str], lines: Lines) -> None:
    """Adds what others reach, one after the other."""
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(checkpoint), device="cuda", model_kwargs={"dtype": torch.float16})
    for batch in (32, 1024):
        work = partial(peer.encode, texts, batch_size=batch)
        timed(lines, f"sentence-transformers fp16, batch {batch}", work, 2)
    if find_spec("infinity_emb"):
        for batch in (32, 256, 1024):
            with embedder(checkpoint, batch) as embed:
                timed(lines, f"Infinity fp16, batch {batch}", partial(embed, texts), 2)


def cold_start(bundle: Path, checkpoint: Path, rounds: int, *, alone: bool) -> list[dict[str, Any]]:
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
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    gpu = torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = hugging_face_folder(args.bundle, Path(temporary))
        alone = "_alone" if args.alone else ""
        if args.rounds:
            cold = cold_start(args.bundle, checkpoint, args.rounds, alone=args.alone)
            save(f"{args.out}/cuda_cold_start{alone}", f"New process to first vector, MiniLM-L6, {gpu}", cold)
        texts = lognormal_texts(TEXTS)
        lines, vectors = ours(args.bundle, texts)
        name = f"{args.out}/cuda_end_to_end{alone}"
        title = f"{TEXTS} texts of 67 tokens to vectors, MiniLM-L6, {gpu}"
        if args.alone:
            save(name, title, lines)
            return
        want = exact(checkpoint, texts[:COMPARED])
        found = [f"{target} {(want * got).sum(-1).min():.7f}" for target, got in vectors.items()]
        try:
            peers(checkpoint, texts, lines)
        finally:  # a peer that does not run takes nobody's figures along
            save(name, f"{title}; smallest cosine with fp32: {', '.join(found)}", lines)


if __name__ == "__main__":
    main()
