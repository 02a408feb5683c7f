"""From one bundle to another on Ray Serve, under load: how many requests fail (none should), and what they take meanwhile.

    python -m benchmarks.rolling_update [--replicas 2] [--clients 4] [--updates 4] [--seconds 15]

A local Ray cluster and `bei.runtime.ray_serve` with MiniLM, updated to a MiniLM whose first block has other weights, and back, and
so on. Clients send one text at a time over connections that they keep; every answer must be one of the two models' own vectors to 1e-4.
"""

import argparse
import asyncio
import base64
import itertools
import json
import logging
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import numpy.typing as npt
import ray
from benchmarks.load import read_answer, request
from benchmarks.minilm import checkpoint, lognormal_texts
from benchmarks.record import save
from ray import serve
from safetensors.numpy import load_file, save_file

import bei
from bei.runtime.ray_arguments import read_arguments
from bei.runtime.ray_serve import DEPLOYMENT, NAME

TEXTS = 64
TOLERANCE = 1e-4
CHANGED = "encoder.layer.0.output.dense.weight"
SETTLE_SECONDS = 300
NAMES = ("old", "new")

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """``what``: the bundle that the answer is right for, or what was wrong. Times in seconds of `time.perf_counter`."""

    began: float
    ended: float
    what: str


@dataclass(slots=True)
class Crowd:
    """Clients that ask one request after the other until they are told to stop; ``vectors`` of each bundle."""

    port: int
    texts: Sequence[str]
    vectors: Mapping[str, Vectors]
    done: list[Asked] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    async def run(self, clients: int) -> None:
        await asyncio.gather(*(self._client(number) for number in range(clients)))

    async def _client(self, number: int) -> None:
        chance = random.Random(number)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while not self.stop.is_set():
            index = chance.randrange(len(self.texts))
            began = time.perf_counter()
            try:
                writer.write(request("/v1/embeddings", "bei", [self.texts[index]], encoding_format="base64"))
                what = self._judge(index, *await read_answer(reader))
            except (OSError, asyncio.IncompleteReadError) as error:
                what = type(error).__name__
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            self.done.append(Asked(began=began, ended=time.perf_counter(), what=what))
        writer.close()

    def _judge(self, index: int, status: int, body: bytes) -> str:
        if status != 200:
            return f"status {status}"
        got = np.frombuffer(base64.b64decode(json.loads(body)["data"][0]["embedding"]), "<f4")
        near = (name for name, rows in self.vectors.items() if np.abs(got - rows[index]).max() < TOLERANCE)
        return next(near, "wrong vector")


@contextmanager
def asking(crowd: Crowd, clients: int) -> Iterator[None]:
    thread = threading.Thread(target=lambda: asyncio.run(crowd.run(clients)))
    thread.start()
    try:
        yield
    finally:
        crowd.stop.set()
        thread.join()


def compiled(folder: Path) -> dict[str, Path]:
    """The two bundles."""
    changed = folder / "checkpoint"
    shutil.copytree(checkpoint(), changed)
    weights = load_file(changed / "model.safetensors")
    weights[CHANGED] = weights[CHANGED] * np.float32(1.5)
    save_file(weights, changed / "model.safetensors")
    bundles = {name: folder / f"{name}.bundle" for name in NAMES}
    for source, bundle in zip((checkpoint(), changed), bundles.values(), strict=True):
        command = [sys.executable, "-m", "bei.compiler.cli", "--repo", str(source), "--out", str(bundle)]
        subprocess.run(
            [*command, "--target", "onnxruntime-cpu", "--no-parity"], check=True, capture_output=True
        )
    return bundles


@contextmanager
def serving(replicas: int) -> Iterator[int]:
    """Ray Serve on this machine; the port of its proxy."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    cpus = 2 * replicas + 1  # logical ones: an update has both generations
    ray.init(
        "local", log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False, num_cpus=cpus
    )
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        yield port
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def deploy(bundle: Path, replicas: int) -> None:
    """Returns when the application runs, every replica has the bundle, and the ones before have ended."""
    arguments = read_arguments({"bundles": str(bundle), "allow_unverified": True})
    serve.run(DEPLOYMENT.options(num_replicas=replicas).bind(arguments), name="bei", route_prefix="/")
    limit = time.monotonic() + SETTLE_SECONDS
    while True:
        application = serve.status().applications["bei"]
        if application.status == "RUNNING" and application.deployments[NAME].replica_states == {
            "RUNNING": replicas
        }:
            return
        if time.monotonic() > limit:
            raise SystemExit(f"the update did not end: {application}")
        time.sleep(0.1)


def row(phase: str, asked: Sequence[Asked], seconds: float) -> dict[str, object]:
    counts = {what: sum(one.what == what for one in asked) for what in NAMES}
    times = sorted(1000 * (one.ended - one.began) for one in asked)
    p50, p99 = (round(times[min(len(times) - 1, int(share * len(times)))], 1) for share in (0.5, 0.99))
    return {
        "phase": phase,
        "seconds": round(seconds, 1),
        "requests": len(asked),
        **{f"answered by {name}": count for name, count in counts.items()},
        "failed": len(asked) - sum(counts.values()),
        "p50 ms": p50,
        "p99 ms": p99,
        "longest ms": round(times[-1], 1),
    }


def measure(crowd: Crowd, bundles: Mapping[str, Path], args: argparse.Namespace) -> list[tuple[str, float]]:
    """Updates under load; each phase's name and beginning, and at last the end."""
    phases: list[tuple[str, float]] = []
    with asking(crowd, args.clients):
        for update in range(args.updates):
            phases.append(("between updates" if update else "before", time.perf_counter()))
            time.sleep(args.seconds)
            name = NAMES[(update + 1) % 2]
            phases.append((f"update {update + 1}, to the {name} one", time.perf_counter()))
            deploy(bundles[name], args.replicas)
        phases.append(("after", time.perf_counter()))
        time.sleep(args.seconds)
    return [*phases, ("", time.perf_counter())]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=15, help="before each update, and after the last")
    parser.add_argument("--note", default="", help="what else the machine was doing")
    args = parser.parse_args()
    texts = lognormal_texts(TEXTS)
    with tempfile.TemporaryDirectory() as folder, serving(args.replicas) as port:
        bundles = compiled(Path(folder))
        vectors = {}
        for name, path in bundles.items():
            with bei.load(path, allow_unverified=True) as model:
                vectors[name] = model.encode(texts)
        deploy(bundles[NAMES[0]], args.replicas)
        crowd = Crowd(port, texts, vectors)
        phases = measure(crowd, bundles, args)
    rows = [
        row(name, [one for one in crowd.done if began <= one.began < ended], ended - began)
        for (name, began), (_, ended) in itertools.pairwise(phases)
    ]
    failures = sorted({one.what for one in crowd.done} - set(NAMES))
    what = f"Rolling updates on Ray Serve: MiniLM, {args.replicas} replicas of one thread, {args.clients} clients with one text each"
    save("rolling_update", f"{what}{'; ' + args.note if args.note else ''}", rows)
    print(f"{len(crowd.done)} requests; failures: {', '.join(failures) or 'none'}")


if __name__ == "__main__":
    main()
