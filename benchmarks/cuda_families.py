"""Every family at full width and real depth on one GPU: the CUDA engine against an fp32 reference.

python -m benchmarks.cuda_families [--out h100] [--models roberta-base …] [--workers 13]

Random live weights, fp16 engine. A process a model, several at once: what one does costs no other its answer, and seconds are
no timings. ``few`` is a batch of the plan's small schedule, ``many`` one of its large schedule, ``alone`` a text of them in a
batch of its own. The reference runs text by text: transformers where it has the class, the project's own of Jina v2, else
TorchOps on the CPU. ``texts apart`` is the smallest 1 − cosine between two texts' reference vectors: an answer that is the
same for every text would show. Needs the extras cuda and parity.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.cubins import build, origin
from benchmarks.family_checkpoints import NAMES, OWN, ZOO, depth, head_of, write
from benchmarks.record import save

from bei.adapters.registry import adapter_for
from bei.compiler.checkpoint.checkpoint import open_checkpoint
from bei.compiler.checkpoint.load import LoadedModel, load_model
from bei.compiler.lowering.cuda_large import LEAST
from bei.compiler.lowering.cuda_options import CudaOptions
from bei.compiler.lowering.torch_ops import Tensors, run_torch
from bei.compiler.parity.native import read_config, translated
from bei.compiler.parity.quiet import quiet
from bei.runtime.cuda.engine import Engine
from bei.runtime.executor import Row

ROOT = Path(__file__).parents[1]
LIMIT = 200
"""Seconds that one model may take."""
THREADS = "4"
"""Of one model's process: as many processes share the machine as there are models."""
FEW = (3, 500, 17, 64, 1, 129, 65, 300)
MANY = tuple(int(n) for n in np.random.default_rng(0).integers(3, 500, 26))
ALONE = 5
"""Every how many-th text is run alone too."""

F32 = npt.NDArray[np.float32]
Line = dict[str, Any]


def load(folder: Path) -> LoadedModel:
    """Encoder and weights, through its adapter; its own head is left out."""
    checkpoint = open_checkpoint(str(folder), offline=True)
    model = load_model(checkpoint, adapter_for(checkpoint.config), values=False)
    encoder = {name: weight for name, weight in model.weights.items() if not name.startswith("head.")}
    return LoadedModel(cfg=model.cfg, head_files=model.head_files, weights=encoder)


def texts(model: LoadedModel, lengths: Sequence[int]) -> list[Row]:
    """Random ids, none of them the id of padding."""
    rng = np.random.default_rng(0)
    usable = np.setdiff1d(np.arange(5, model.cfg.vocab, dtype=np.int32), [model.cfg.position_pad or 0])
    return [Row(ids=rng.choice(usable, n), types=np.zeros(n, np.int32)) for n in lengths]


def compare(model: LoadedModel, folder: Path, engine: Engine, where: str) -> Line:
    """Cosines of both schedules with the reference, and of texts alone with themselves in a batch."""
    few, many = texts(model, FEW), texts(model, MANY)
    assert sum(FEW) < LEAST < sum(MANY)
    got = [np.asarray(engine.run(rows)) for rows in (few, many)]
    rows, together = few + many, np.concatenate(got)
    alone = np.concatenate([np.asarray(engine.run([row])) for row in rows[::ALONE]])
    name, want = reference(model, folder, rows, where)
    close, same = cosines(want, together), cosines(alone, together[::ALONE])
    others = want @ want.T - 2 * np.eye(len(want))
    return {
        "reference": name,
        "cosine min, few": _figure(close[: len(few)].min()),
        "cosine min, many": _figure(close[len(few) :].min()),
        "NaN": int(np.isnan(together).sum() + np.isnan(alone).sum()),
        "alone, cosine min": _figure(same.min()),
        "alone, largest difference": f"{np.abs(alone - together[::ALONE]).max():.1e}",
        "texts apart": round(float(1 - others.max()), 4),
    }


def cosines(a: F32, b: F32) -> npt.NDArray[np.float64]:
    """[B], computed in float64."""
    wide = [x.astype(np.float64) for x in (a, b)]
    left, right = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in wide)
    return np.asarray((left * right).sum(-1))


def _figure(cosine: float) -> float:
    """Cut, not rounded: what is shown as 1 is no less."""
    return float(np.floor((cosine + 1e-12) * 1e7) / 1e7)


def reference(model: LoadedModel, folder: Path, rows: Sequence[Row], where: str) -> tuple[str, F32]:
    """Its name, and vectors [B, D] of norm 1."""
    import transformers

    with quiet(), translated(folder) as readable, torch.inference_mode():
        known = transformers.CONFIG_MAPPING
        if read_config(readable)["model_type"] not in known:
            return "TorchOps fp32, CPU", np.concatenate([*_torch_ops(model, rows)])
        module = transformers.AutoModel.from_pretrained(
            readable, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
        module = module.eval().to(where)
        with torch.device(where):
            vectors = [_vector(module, model, row) for row in rows]
    whose = type(module).__module__.split(".")[0]
    return f"{whose} {type(module).__name__} fp32", np.stack(vectors)


def _vector(module: Any, model: LoadedModel, row: Row) -> F32:
    ids = torch.tensor(row.ids[None].astype(np.int64))
    states = module(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    pooled = states[-1] if model.cfg.causal else states.mean(0)
    return np.asarray(torch.nn.functional.normalize(pooled, dim=-1).cpu(), np.float32)


def _torch_ops(model: LoadedModel, rows: Sequence[Row]) -> Iterator[F32]:
    kept = Tensors()
    for row in rows:
        ids = torch.from_numpy(row.ids[None].astype(np.int64))
        head, mask = head_of(model.cfg), torch.ones_like(ids)
        yield run_torch(model.cfg, head, model.weights, ids, mask, tensors=kept).numpy()


def one(name: str) -> Line:
    """A model's line, made in this process."""
    from bei.runtime.cuda.gpu import Gpu

    started = time.perf_counter()
    major, minor = torch.cuda.get_device_capability()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        write(name, folder)
        written = time.perf_counter()
        model = load(folder)
        plan = build(model.cfg, head_of(model.cfg), model.weights, CudaOptions(sm=10 * major + minor))
        compiled = time.perf_counter()
        engine = Engine(Gpu("benchmark"), plan, folder)
        line = _sizes(name, model) | compare(model, folder, engine, "cuda")
        engine.close()
    seconds = {
        "s to write": written - started,
        "s to compile": compiled - written,
        "s to run": time.perf_counter() - compiled,
    }
    return line | {key: round(value, 1) for key, value in seconds.items()}


def _sizes(name: str, model: LoadedModel) -> Line:
    cfg = model.cfg
    numbers = sum(int(np.prod(weight.shape)) for weight in model.weights.values())
    return {
        "model": name,
        "shape of": ZOO[name][0] if name in ZOO else OWN[name][0],
        "layers": f"{len(cfg.layers)} of {depth(name)}",
        "width": cfg.dim,
        "M weights": round(numbers / 1e6),
    }


def apart(name: str) -> Line:
    """The line of a model, made in a process of its own; one that fails says how."""
    command = [sys.executable, "-m", "benchmarks.cuda_families", "--one", name]
    env = os.environ | {"OMP_NUM_THREADS": THREADS}
    try:
        done = subprocess.run(
            command, check=False, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return {"model": name, "failed": f"took more than {LIMIT} s"}
    last = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()[-1:]
    if done.returncode or not last:
        print(done.stderr[-3000:], file=sys.stderr, flush=True)
        return {"model": name, "failed": "".join(last)[:200] or f"exit code {done.returncode}"}
    line: Line = json.loads(last[0])
    return line


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="h200")
    parser.add_argument("--models", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--workers", type=int, default=len(NAMES), help="models at once")
    parser.add_argument("--one", choices=list(NAMES), help="this one in this process; prints JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one)))
        return
    what = f"Families at full width and real depth, {len(FEW)} texts of {sum(FEW)} tokens and {len(MANY)} of {sum(MANY)}, fp16"
    lines: dict[str, Line] = {}
    with ThreadPoolExecutor(args.workers) as pool:
        for future in as_completed([pool.submit(apart, name) for name in args.models]):
            line = future.result()
            lines[line["model"]] = line
            done = [lines[name] for name in args.models if name in lines]
            save(f"{args.out}/cuda_families", f"{what}, {torch.cuda.get_device_name()}, {origin()}", done)


if __name__ == "__main__":
    main()
