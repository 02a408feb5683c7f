"""Replicas whose times are known in closed form."""

from collections.abc import Callable

from bei.runtime.batching import Budget
from bei.runtime.capacity.curve import EngineCurve, HostCosts, Point, grid
from bei.runtime.capacity.simulation import ReplicaModel

FREE = HostCosts(
    device="free",
    cores=1,
    source="test",
    request=0.0,
    text=0.0,
    tokenize_request=0.0,
    tokenize_text=0.0,
    tokenize_token=0.0,
    beside_engine=1.0,
    idle=0.0,
)


def engine(
    seconds: Callable[[int, int], float],
    *,
    kind: str = "cuda",
    concurrency: int = 1,
    crowded: float = 1.0,
    device: str = "test GPU",
    **changes: object,
) -> EngineCurve:
    """``seconds(rows, length)`` of a call; ``crowded`` times that with ``concurrency`` in flight."""
    points = [
        Point(calls, length, rows * length, seconds(rows, length) * (crowded if calls > 1 else 1.0))
        for rows, length in grid(128, 1024, 64)
        for calls in {1, concurrency}
    ]
    fields: dict[str, object] = {
        "device": device,
        "card": "H200" if kind == "cuda" else "cpu",
        "host": "free",
        "model": "test",
        "shape": {"dim": 8},
        "target": "cuda-sm90" if kind == "cuda" else "onnxruntime-cpu",
        "kind": kind,
        "layout": "padded",
        "threads": 2 if kind == "cpu" else 0,
        "concurrency": concurrency,
        "source": "test",
        "points": tuple(points),
    }
    return EngineCurve(**(fields | changes))  # type: ignore[arg-type]


def constant(seconds: float) -> Callable[[int, int], float]:
    return lambda rows, length: seconds


def linear(fixed: float, a_token: float) -> Callable[[int, int], float]:
    return lambda rows, length: fixed + a_token * rows * length


def replica(
    curve: EngineCurve, *, max_tokens: int = 1024, max_rows: int = 64, host: HostCosts = FREE
) -> ReplicaModel:
    return ReplicaModel(
        curve=curve, host=host, budget=Budget(max_tokens=max_tokens, max_rows=max_rows, max_waste=1.0)
    )
