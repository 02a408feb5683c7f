"""What bei-plan says of one million requests a second with MiniLM: on CPUs like this one, and on H200s.

    python -m benchmarks.million [--rate 1000000] [--p99 100]

The CPU engine, the tokenizer and the server are measured here first, undisturbed; the H200's times are those that come with bei.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from benchmarks.minilm import compile_bundle
from benchmarks.quiet import quiet
from benchmarks.record import Row, save

LENGTHS = "lognormal:67,0.75"
HOST_CORES = 16
"""Beside an H200."""

TEXTS = (1, 16)


def planned(bundle: Path, *options: str) -> dict[str, Any]:
    """What `bei-plan --json` prints. Exit code 1, no plan, is an answer too."""
    command = [sys.executable, "-m", "bei.runtime.capacity.cli", str(bundle), "--json", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"bei-plan ended with {done.returncode}")
    found: dict[str, Any] = msgspec.json.decode(done.stdout)
    return found


def rows(plan: dict[str, Any]) -> Iterator[Row]:
    """One a device."""
    for option in plan["options"]:
        row = {"texts in a request": plan["texts_per_request"], "device": option["device"]}
        if option["replicas"] is None:
            yield row | {"replicas": "none", "bound": option["advice"][0]}
            continue
        yield row | {
            "replicas": f"{option['replicas']:,}",
            "tokens a batch": option["max_batch_tokens"],
            "engine busy": f"{option['busy']['engine']:.0%}",
            "event loop busy": f"{option['busy']['event loop']:.0%}",
            "p50 / p99 ms": f"{option['p50_ms']:.1f} / {option['p99_ms']:.1f}",
            "requests/s each": f"{option['requests_per_second']:,.0f}",
            "$ an hour, assumed price": f"{option['cost_hour']:,.0f}",
            "$ a million texts": f"{option['cost_million_texts']:.4f}",
            "bound": option["bound"],
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=int, default=1_000_000, help="requests a second")
    parser.add_argument("--p99", type=float, default=100.0, help="milliseconds")
    args = parser.parse_args()
    load = (
        "--rate",
        str(args.rate),
        "--length-distribution",
        LENGTHS,
        "--p99",
        str(args.p99),
        "--host-cores",
        str(HOST_CORES),
    )
    with tempfile.TemporaryDirectory() as temporary:
        bundle = compile_bundle(Path(temporary) / "minilm.bundle")
        quiet(lambda: planned(bundle, "--measure"))
        found = [
            row for texts in TEXTS for row in rows(planned(bundle, *load, "--texts-per-request", str(texts)))
        ]
    what = (
        f"bei-plan: {args.rate:,} requests/s, {LENGTHS} tokens, p99 within {args.p99:g} ms, all-MiniLM-L6-v2. Simulated: "
        "fp32 on this CPU as measured here, fp16 on an H200 as measured there (h200/cuda_device), with "
        f"{HOST_CORES} such cores beside it, the server as on this CPU"
    )
    save("capacity_million", what, found)


if __name__ == "__main__":
    main()
