"""From committed results to the curves that come with `bei-plan`: only what was measured, as it was measured.

    python -m benchmarks.known_curves

Takes whole calls (assemble, copy, compute, copy back) of models that have both a small and a large batch among them, so
that the time of a batch in between is known from both sides. Needs the extras cuda and parity.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import transformers
from benchmarks.cuda_engine import WORKLOADS
from benchmarks.cuda_models import SHAPES
from benchmarks.record import RESULTS

from bei.adapters.base import HfConfig
from bei.adapters.registry import adapter_for
from bei.cards import card_of
from bei.runtime.capacity import store
from bei.runtime.capacity.curve import EngineCurve, Point, effective_length, shape_of

SOURCES = {"h200/cuda_device.json": "cuda-sm90"}
SMALL, LARGE = 64, 8192
"""Tokens that the smallest batch may at most have, and the largest must at least."""


def main() -> None:
    curves = [curve for file, target in SOURCES.items() for curve in from_results(file, target)]
    path = Path(store.__file__).with_name(store.KNOWN)
    store.write_curves(path, store.Curves(engines=tuple(curves)))
    print(f"{path.name}: {', '.join(f'{one.model} on {one.device}' for one in curves)}")


def from_results(file: str, target: str) -> list[EngineCurve]:
    """Curves of the models of one result."""
    facts = json.loads((RESULTS / file).read_text())
    device = facts["what"].rpartition(", ")[2]
    curves = []
    for name in dict.fromkeys(row["model"] for row in facts["rows"]):
        points = tuple(_point(row) for row in facts["rows"] if row["model"] == name)
        tokens = [point.tokens for point in points]
        if min(tokens) <= SMALL and max(tokens) >= LARGE:
            curves.append(
                EngineCurve(
                    device=device,
                    card=card_of(device),
                    host=facts["machine"]["cpu"],
                    model=name,
                    shape=_shape(name),
                    target=target,
                    kind="cuda",
                    layout="packed",
                    threads=0,
                    concurrency=1,
                    source=f"benchmarks/results/{file}, {facts['date']}, {len(points)} sizes",
                    points=points,
                )
            )
    return curves


def _point(row: dict[str, Any]) -> Point:
    lengths = WORKLOADS[row["model"]][row["batch"]]
    return Point(1, effective_length(lengths), sum(lengths), row["bei, whole call"] / 1000)


def _shape(name: str) -> dict[str, Any]:
    prefix, changes = SHAPES[name]
    config = HfConfig(getattr(transformers, f"{prefix}Config")(**changes).to_dict())
    return shape_of(msgspec.to_builtins(adapter_for(config).config(config)))


if __name__ == "__main__":
    main()
