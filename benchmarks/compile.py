"""How long a compile takes and how much memory it needs, each in a process of its own.

    python -m benchmarks.compile

MiniLM and a random BERT of 24 layers × 1024 (BERT-large), to ONNX Runtime CPU and TensorRT-RTX for four SMs.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from benchmarks.minilm import checkpoint
from benchmarks.record import save
from safetensors.numpy import save_file

LARGE = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}


def write_large(folder: Path) -> None:
    """BERT-large's layout with random weights, and MiniLM's tokenizer (the same vocabulary)."""
    rng = np.random.default_rng(0)
    dim, ffn = 1024, 4096

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)

    tensors = {
        "embeddings.word_embeddings.weight": random(30522, dim),
        "embeddings.position_embeddings.weight": random(512, dim),
        "embeddings.token_type_embeddings.weight": random(2, dim),
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(24):
        layer = f"encoder.layer.{i}"
        for name, out, wide in (
            ("attention.self.query", dim, dim),
            ("attention.self.key", dim, dim),
            ("attention.self.value", dim, dim),
            ("attention.output.dense", dim, dim),
            ("intermediate.dense", ffn, dim),
            ("output.dense", dim, ffn),
        ):
            tensors[f"{layer}.{name}.weight"] = random(out, wide)
            tensors[f"{layer}.{name}.bias"] = random(out)
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for norm in norms:
        tensors[f"{norm}.weight"] = 1 + random(dim)
        tensors[f"{norm}.bias"] = random(dim)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LARGE))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_bytes((checkpoint() / name).read_bytes())


def measure(folder: Path, out: Path) -> dict[str, object]:
    """Wall time and peak memory of one `bei-compile --no-parity`."""
    command = [sys.executable, "-m", "bei.compiler.cli", "--repo", str(folder), "--out", str(out)]
    started = time.perf_counter()
    with subprocess.Popen([*command, "--no-parity", "--json"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        result = json.loads(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"bei-compile failed with {process.returncode}")
    weights = (folder / "model.safetensors").stat().st_size
    return {
        "targets": ", ".join(engine["target"] for engine in result["engines"]),
        "weights MiB": round(weights / 2**20),
        "wall s": round(seconds, 1),
        "peak MiB": round(usage.ru_maxrss / 2**10),
        "2 × weights + 1 GiB": round(2 * weights / 2**20 + 1024),
    }


def main() -> None:
    """Both models, one after the other."""
    with tempfile.TemporaryDirectory() as temporary:
        small, large = Path(temporary, "small.bundle"), Path(temporary, "bert-24x1024")
        # a child's peak memory counts its parent's at the fork: the small model goes first
        rows = [{"model": "all-MiniLM-L6-v2", **measure(checkpoint(), small)}]
        large.mkdir()
        write_large(large)
        rows.append({"model": "BERT 24 × 1024, random", **measure(large, Path(temporary, "large.bundle"))})
    save("compile", "bei-compile without parity (engines built, RTX not executed)", rows)


if __name__ == "__main__":
    main()
