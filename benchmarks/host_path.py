"""What a text costs the host on its way to a CUDA engine, part by part: wall time and CPU time, with and without the GPU.

    python -m benchmarks.host_path --bundle minilm.bundle [--out h100] [--texts 8000]

The bundle holds a CUDA engine of all-MiniLM-L6-v2 (bei-compile --target cuda-sm90 needs no GPU). Texts of lognormal length, of few
words and of prose (benchmarks/minilm.py). "Instant engine": everything that happens to a text but the GPU's work, its rows put
into the engine's inputs and vectors handed back. Where the engine runs, texts to vectors with it too. Best of several runs: what
else the machine does only ever adds.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from benchmarks.minilm import lognormal_texts, prose_texts
from benchmarks.record import save

from bei.cuda_plan import decode_plan
from bei.manifest import EngineRecord
from bei.runtime.batching import Budget, budget_for, plan
from bei.runtime.bundle import Bundle, Choice, read_bundle
from bei.runtime.cuda.batch import assemble
from bei.runtime.executor import Output, Row
from bei.runtime.executors import registry
from bei.runtime.model import Model
from bei.runtime.tokenizer import Tokenizer, open_tokenizer

REPEATS = 7
Line = dict[str, Any]


class Instant:
    """A CUDA engine without its GPU: puts rows into the plan's inputs and answers at once."""

    concurrency = 2

    def __init__(self, bundle: Bundle, record: EngineRecord) -> None:
        self.target = record.target
        self._plan = decode_plan((bundle.path / record.path).read_bytes(), record.path)
        self._width = bundle.manifest.head.dimensions

    def run(self, rows: list[Row]) -> Output:
        batch = assemble(self._plan, rows)
        return np.zeros((len(batch.lengths), self._width), np.float32)

    def describe(self) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


def timed(what: str, texts: int, work: Callable[[], Any], repeats: int = REPEATS) -> Line:
    """The best of ``repeats``, after one that does not count unless it is the only one."""
    runs = []
    for _ in range(repeats + (repeats > 1)):
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        runs.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = (min(run) for run in zip(*runs, strict=True))
    line = {"what": what, "µs a text": round(1e6 * wall / texts, 2), "CPU µs": round(1e6 * cpu / texts, 2)}
    line["texts/s"] = round(texts / wall)
    print(line, flush=True)
    return line


def started(bundle: Bundle, record: EngineRecord, tokenizer: Tokenizer, *, fake: bool) -> Model:
    engine = Instant(bundle, record) if fake else registry.create(bundle.path, record, bundle.manifest)
    return Model(bundle, Choice(record=record), tokenizer, engine)


def parts(bundle: Bundle, record: EngineRecord, kind: str, texts: Sequence[str]) -> Iterator[Line]:
    library = tokenizers.Tokenizer.from_file(str(bundle.path / bundle.manifest.tokenizer.file))
    library.no_truncation()
    library.no_padding()
    longest = bundle.manifest.limits.max_length
    count = len(texts)
    yield timed(f"{kind}: the library alone", count, lambda: library.encode_batch_fast(list(texts)))
    whole, known = (open_tokenizer(bundle) for _ in range(2))
    whole._pieces = None
    yield timed(f"{kind}: rows, by the library", count, lambda: encoded(whole, texts, longest))
    yield timed(f"{kind}: rows, first time", count, lambda: encoded(known, texts, longest), 1)
    yield timed(f"{kind}: rows, again", count, lambda: encoded(known, texts, longest))
    rows = encoded(known, texts, longest)
    budget = budget_for(record, bundle.manifest.limits)
    instant = Instant(bundle, record)
    yield timed(f"{kind}: rows to inputs", count, lambda: packed(instant, rows, budget))
    engines = {"instant engine": True} | (
        {record.target: False} if registry.available(record) is None else {}
    )
    for engine, fake in engines.items():
        for how, tokenizer in (("", known), (", by the library", whole)):
            with started(bundle, record, tokenizer, fake=fake) as model:
                what = f"{kind}: texts to vectors, {engine}{how}"
                yield timed(what, count, partial(model.encode, texts))


def encoded(tokenizer: Tokenizer, texts: Sequence[str], longest: int) -> list[Row]:
    """By chunks, as they come to an engine."""
    chunks = (texts[start : start + 512] for start in range(0, len(texts), 512))
    return [row for chunk in chunks for row in tokenizer.encode(chunk, max_length=longest)]


def packed(executor: Instant, rows: Sequence[Row], budget: Budget) -> None:
    for batch in plan([len(row.ids) for row in rows], budget):
        executor.run([rows[index] for index in batch])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", default=".")
    parser.add_argument("--texts", type=int, default=8000)
    args = parser.parse_args()
    bundle = read_bundle(args.bundle)
    record = next(record for record in bundle.manifest.engines if record.backend == "cuda")
    lines = [
        line
        for kind, make in (("few words", lognormal_texts), ("prose", prose_texts))
        for line in parts(bundle, record, kind, make(args.texts))
    ]
    save(
        f"{args.out}/host_path",
        f"{args.texts} texts to the CUDA engine of MiniLM-L6, best of {REPEATS} runs",
        lines,
    )


if __name__ == "__main__":
    main()
