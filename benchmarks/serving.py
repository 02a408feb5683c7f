"""bei-serve against its own engine, against sentence-transformers behind FastAPI, and against Infinity, on the CPU in one run.

    python -m venv DIR && DIR/bin/pip install "infinity-emb[server,torch]==0.0.78" torch==2.13.0     # has pins of its own
    python -m benchmarks.serving --infinity DIR/bin/infinity_emb [--requests 64] [--rounds 3] [--singles 100]

All servers are up at once and take turns; the client is a process's own event loop on the same cores, so its cost is in
every figure but the engine's. Answers are JSON numbers everywhere. Texts: lognormal length, 67 tokens mean.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

THREADS = 2
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")

import numpy as np
from benchmarks import load
from benchmarks.minilm import checkpoint, compile_bundle, lognormal_texts
from benchmarks.record import save, spread

import bei
from bei.runtime.model import Model

TEXTS, CONNECTIONS = 32, 16
START_SECONDS = 300


@dataclass(kw_only=True, slots=True)
class Server:
    """A running server and what was measured on it. Memory in MiB of resident pages."""

    name: str
    url: str
    process: "subprocess.Popen[bytes]"
    ready: float
    idle: float
    bulk: list[load.Load] = field(default_factory=list)
    singles: list[load.Load] = field(default_factory=list)

    def memory(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def bei_serve(bundle: Path, threads: int) -> tuple[list[str], str]:
    """Command and route."""
    options = ["--threads", str(threads), "--port", "{port}"]
    return [sys.executable, "-m", "bei.runtime.cli", str(bundle), *options], "/v1/embeddings"


def commands(bundle: Path, infinity: str | None) -> dict[str, tuple[list[str], str]]:
    """Command and route of each server by name; {port} is filled in."""
    here = Path(__file__).parent
    model = str(checkpoint())
    plain = [sys.executable, str(here / "plain_server.py"), model, "{port}", str(THREADS)]
    found = {
        "bei-serve": bei_serve(bundle, THREADS),
        "sentence-transformers + FastAPI": (plain, "/v1/embeddings"),
    }
    if infinity is not None:
        options = f"--model-id {model} --engine torch --device cpu --port {{port}} --host 127.0.0.1"
        switches = "--no-bettertransformer --no-compile"  # both want packages or a compiler beside it
        found["infinity-emb (torch)"] = ([infinity, "v2", *options.split(), *switches.split()], "/embeddings")
    return found


@contextmanager
def running(name: str, command: list[str], route: str) -> Iterator[Server]:
    """Start a server and wait until it says that it is healthy."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    began = time.perf_counter()
    with open(os.devnull, "wb") as silence:
        process = subprocess.Popen(
            [part.format(port=port) for part in command], stdout=silence, stderr=silence
        )
    try:
        while not _healthy(f"http://127.0.0.1:{port}/health"):
            if process.poll() is not None or time.perf_counter() - began > START_SECONDS:
                raise SystemExit(f"{name}: did not start ({' '.join(command)})")
            time.sleep(0.005)
        ready = time.perf_counter() - began
        server = Server(
            name=name, url=f"http://127.0.0.1:{port}{route}", process=process, ready=ready, idle=0.0
        )
        server.idle = server.memory()
        yield server
    finally:
        process.terminate()
        process.wait(60)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def encode(model: Model, texts: list[str]) -> float:
    """Texts a second of the engine alone."""
    began = time.perf_counter()
    model.encode(texts)
    return len(texts) / (time.perf_counter() - began)


def encode_one(model: Model, texts: list[str]) -> list[float]:
    """Milliseconds of each text by itself, in ascending order."""
    found = []
    for text in texts:
        began = time.perf_counter()
        model.encode(text)
        found.append(1000 * (time.perf_counter() - began))
    return sorted(found)


def main() -> None:
    """Rounds of the engine and of every server in turn, first bulk, then single texts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--infinity", metavar="PATH", help="infinity_emb of a virtual environment that has it"
    )
    parser.add_argument("--requests", type=int, default=64, help="requests of a round, 32 texts each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--singles", type=int, default=100, help="single texts of a round")
    args = parser.parse_args()
    texts = lognormal_texts(TEXTS * args.requests)
    batches = [texts[start : start + TEXTS] for start in range(0, len(texts), TEXTS)]
    singles = lognormal_texts(args.singles, seed=1)
    alone: list[float] = []
    alone_one: list[list[float]] = []
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        bundle = compile_bundle(Path(temporary) / "minilm.bundle")
        servers = [
            stack.enter_context(running(name, command, route))
            for name, (command, route) in commands(bundle, args.infinity).items()
        ]
        model = stack.enter_context(bei.load(bundle, threads=THREADS))
        model.encode(texts[:TEXTS])
        for server in servers:
            load.run(server.url, batches[:2], 1)
        for _ in range(args.rounds):
            alone.append(encode(model, texts))
            for server in servers:
                server.bulk.append(load.run(server.url, batches, CONNECTIONS))
            alone.append(encode(model, texts))  # before and after: the machine's own speed drifts
            alone_one.append(encode_one(model, singles))
            for server in servers:
                server.singles.append(load.run(server.url, [[text] for text in singles], 1))
        after = {server.name: server.memory() for server in servers}
    engine_rate = float(np.median(alone))
    engine_one = float(np.median([np.quantile(times, 0.5) for times in alone_one]))
    rows = [
        {
            "variant": "bei engine, no server",
            "texts/s": spread(alone, 1),
            "one text, p50 ms": f"{engine_one:.2f}",
        }
    ]
    for server in servers:
        rate = float(np.median([one.texts_per_second for one in server.bulk]))
        one = float(np.median([one.quantile(0.5) for one in server.singles]))
        rows.append(
            {
                "variant": server.name,
                "texts/s": spread([one.texts_per_second for one in server.bulk], 1),
                "of the engine": f"{100 * rate / engine_rate:.0f} %",
                "p50 / p99 s": " / ".join(_seconds(server.bulk, share) for share in (0.5, 0.99)),
                "one text, p50 ms": f"{one:.2f}",
                "added by HTTP, ms": f"{one - engine_one:.2f}",
                "one text, p99 ms": f"{np.median([one.quantile(0.99) for one in server.singles]):.1f}",
                "ready after s": f"{server.ready:.2f}",
                "idle MiB": f"{server.idle:.0f}",
                "after load MiB": f"{after[server.name]:.0f}",
            }
        )
    what = (
        f"HTTP serving on the CPU, all-MiniLM-L6-v2 fp32, {THREADS} threads: {args.rounds} rounds of {args.requests} "
        f"requests with {TEXTS} texts over {CONNECTIONS} connections, and of {args.singles} single texts over one"
    )
    save("serving_cpu", what, rows)


def _seconds(loads: list[load.Load], share: float) -> str:
    return f"{np.median([one.quantile(share) for one in loads]) / 1000:.2f}"


if __name__ == "__main__":
    main()
