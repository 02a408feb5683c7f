"""bei-embed over a corpus of short texts: against the engine's own `encode`, its memory, resuming, and two Ray actors.

    python -m benchmarks.corpus [--texts 200000] [--ray-texts 40000]

With all-MiniLM-L6-v2 on two cores about 1,000 such texts a second can be expected: 200,000 texts are computed about 2.5 times,
40,000 for Ray about three times, so some 12 minutes. `encode` runs over one half of the texts before the job and over the
other half after it. Texts have 3 to 12 words. The extras embed and ray are needed (--ray-texts 0 leaves Ray out).
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

THREADS = 2
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import msgspec
import numpy as np
from benchmarks.minilm import compile_bundle, short_texts
from benchmarks.record import Row, save

import bei

POLL_SECONDS = 0.25
RAY_SHARD_ROWS = 1024
RAY_CPUS = 4
"""As Ray counts them: two actors, and what Ray Data itself asks for."""


class Embed:
    """One run of bei-embed in a process of its own."""

    def __init__(self, bundle: Path, corpus: Path, out: Path, *options: str) -> None:
        self.out = out
        command = [
            sys.executable,
            "-m",
            "bei.runtime.corpus.cli",
            str(bundle),
            str(corpus),
            "--out",
            str(out),
        ]
        self.process = subprocess.Popen([*command, "--json", *options], stdout=subprocess.PIPE)
        self.memory: list[float] = []

    def wait(self) -> dict[str, Any]:
        """Its summary; meanwhile its resident memory is noted, in MiB."""
        while self.process.poll() is None:
            self.memory.append(_resident(self.process.pid))
            time.sleep(POLL_SECONDS)
        assert self.process.stdout is not None
        if self.process.returncode:
            raise SystemExit(f"bei-embed ended with {self.process.returncode}")
        summary: dict[str, Any] = msgspec.json.decode(self.process.stdout.read())
        return summary

    def kill_at(self, rows: int, shard_rows: int) -> None:
        """kill -9 once so many rows are written."""
        while len(_parts(self.out)) * shard_rows < rows:
            if self.process.poll() is not None:
                raise SystemExit("bei-embed ended before it could be killed: take more texts.")
            time.sleep(POLL_SECONDS / 5)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def _parts(out: Path) -> list[Path]:
    return sorted(out.glob("part-*.parquet"))


def _resident(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def whole_job(bundle: Path, corpus: Path, texts: Sequence[str], folder: Path) -> list[Row]:
    """The job against `encode`, and its memory."""
    half = len(texts) // 2
    with bei.load(bundle, threads=THREADS) as model:
        model.encode(texts[:1000])
        alone = seconds(lambda: model.encode(texts[:half]))
    job = Embed(bundle, corpus, folder / "whole", "--threads", str(THREADS))
    summary = job.wait()
    with bei.load(bundle, threads=THREADS) as model:
        model.encode(texts[:1000])
        alone += seconds(lambda: model.encode(texts[half:]))
    again = seconds(Embed(bundle, corpus, folder / "whole", "--threads", str(THREADS)).wait)
    quarter = max(1, len(job.memory) // 4)
    early, late = (
        float(np.median(part)) for part in (job.memory[quarter : 2 * quarter], job.memory[-quarter:])
    )
    rate, own = summary["texts_per_second"], len(texts) / alone
    return [
        {"what": "encode alone, texts/s", "value": f"{own:.0f}"},
        {"what": "bei-embed, texts/s, start and all", "value": f"{rate:.0f}", "goal": "≥ 95 % of encode",
         "reached": f"{100 * rate / own:.1f} %"},
        {"what": "resident MiB, second quarter → last", "value": f"{early:.0f} → {late:.0f}", "goal": "flat",
         "reached": f"{100 * (late / early - 1):+.1f} %"},
        {"what": "finished job run again, s", "value": f"{again:.2f}"},
        {"what": "peak resident MiB", "value": f"{max(job.memory):.0f}"},
    ]  # fmt: skip


def resumed(bundle: Path, corpus: Path, rows: int, folder: Path) -> list[Row]:
    """A job that is killed in the middle and goes on, against the same at a stretch."""
    shard_rows = max(256, rows // 32)
    options = ("--threads", str(THREADS), "--shard-rows", str(shard_rows))
    through = seconds(Embed(bundle, corpus, folder / "through", *options).wait)
    first = seconds(lambda: Embed(bundle, corpus, folder / "killed", *options).kill_at(rows // 2, shard_rows))
    summary: dict[str, Any] = {}
    second = seconds(lambda: summary.update(Embed(bundle, corpus, folder / "killed", *options).wait()))
    same = all(
        one.read_bytes() == other.read_bytes()
        for one, other in zip(_parts(folder / "through"), _parts(folder / "killed"), strict=True)
    )
    return [
        {"what": f"killed in the middle and resumed, s, against {through:.1f} s at a stretch", "value": f"{first + second:.1f}",
         "reached": f"{100 * ((first + second) / through - 1):+.1f} %, files {'equal' if same else 'DIFFERENT'}"},
        {"what": "rows done before, of all", "value": f"{summary['done_before']} of {rows}"},
    ]  # fmt: skip


@contextmanager
def ray_cluster() -> Iterator[str]:
    """On this machine; its address."""
    import ray

    ray.init("local", num_cpus=RAY_CPUS, include_dashboard=False, log_to_driver=False)
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


def ray_rate(bundle: Path, corpus: Path, rows: int, out: Path, address: str, actors: int) -> float:
    """Texts a second after every actor has done a shard: to start them takes as long for few rows as for many."""
    options = ("--actors", str(actors), "--threads", "1", "--shard-rows", str(RAY_SHARD_ROWS))
    Embed(bundle, corpus, out, "--ray", address, *options).wait()
    written = sorted(part.stat().st_mtime for part in _parts(out))
    return (rows - actors * RAY_SHARD_ROWS) / (written[-1] - written[actors - 1])


def ray_actors(bundle: Path, corpus: Path, rows: int, folder: Path) -> list[Row]:
    """One actor of one thread and two, in turn, twice."""
    with ray_cluster() as address:
        rates = [
            [
                ray_rate(bundle, corpus, rows, folder / f"ray-{turn}-{actors}", address, actors)
                for actors in (1, 2)
            ]
            for turn in range(2)
        ]
    one, two = np.median(rates, axis=0)
    return [
        {"what": "Ray, one actor of one thread, texts/s", "value": f"{one:.0f}"},
        {"what": "Ray, two actors of one thread each, texts/s", "value": f"{two:.0f}", "goal": "≥ 1.8 ×",
         "reached": f"{two / one:.2f} ×"},
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=200_000)
    parser.add_argument("--ray-texts", type=int, default=40_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = compile_bundle(folder / "minilm.bundle")
        texts = short_texts(max(args.texts, args.ray_texts))
        corpus, some, few = (folder / f"{name}.txt" for name in ("all", "some", "few"))
        resume_texts = max(1000, args.texts // 4)
        for file, count in ((corpus, args.texts), (some, resume_texts), (few, args.ray_texts)):
            file.write_text("".join(f"{text}\n" for text in texts[:count]))
        rows = whole_job(bundle, corpus, texts[: args.texts], folder)
        rows += resumed(bundle, some, resume_texts, folder)
        if args.ray_texts:
            rows += ray_actors(bundle, few, args.ray_texts, folder)
    what = (
        f"bei-embed over {args.texts:,} short texts (3 to 12 words), all-MiniLM-L6-v2 fp32, {THREADS} threads; "
        f"resuming over {resume_texts:,}, Ray over {args.ray_texts:,}"
    )
    save("corpus", what, rows)


if __name__ == "__main__":
    main()
