"""Work on a Ray cluster: one task a unit, placed by memory and by the kind of GPU it needs.

A unit whose node or process dies is tried once more, elsewhere if need be; one that runs out of memory is not.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from rich.filesize import decimal

from bei.compiler.fleet.work import Answer, Work
from bei.runtime.ray_cluster import connected

LABEL = "ray.io/accelerator-type"
ACCELERATORS: Mapping[int, tuple[str, ...]] = {
    75: ("T4",),
    80: ("A100", "A100-40G", "A100-80G", "A30"),
    86: ("A10G", "A10", "A40", "RTX-A6000"),
    89: ("L4", "L40S", "L40", "GeForce-RTX-4090"),
    90: ("H100", "H200", "H20", "GH200"),
    100: ("B200", "GB200"),
    103: ("B300", "GB300"),
    120: ("RTX-PRO-6000", "GeForce-RTX-5090"),
}
"""By SM: what Ray labels nodes with such GPUs. Others can be given one of these labels when their node is started."""

ATTEMPTS = 2

Node = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class RayTasks:
    """``address`` as `connected` takes it. ``fresh``: a new process for every unit."""

    address: str | None
    fresh: bool

    def run(self, works: Iterable[Work]) -> Iterator[tuple[Work, Answer]]:
        """See `Machine.run`; Ray decides what starts when."""
        with connected(self.address):
            import ray

            nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
            waiting: dict[Any, tuple[Work, int]] = {}
            for work in works:
                reason = why_nowhere(work, nodes)
                if reason is None:
                    waiting[self._submit(work)] = work, 1
                else:
                    yield work, Answer(lost=reason)
                yield from self._finished(waiting, timeout=0)
            while waiting:
                yield from self._finished(waiting, timeout=None)

    def _submit(self, work: Work) -> Any:
        import ray

        options: dict[str, Any] = {"num_cpus": 1, "memory": work.memory, "max_retries": 0}
        if work.sm is not None:
            options |= {
                "num_gpus": 1,
                "label_selector": {LABEL: f"in({', '.join(ACCELERATORS[work.sm])})"},
            }
        if self.fresh:
            options["max_calls"] = 1
        return ray.remote(**options)(_do).remote(work.request)

    def _finished(
        self, waiting: dict[Any, tuple[Work, int]], *, timeout: float | None
    ) -> Iterator[tuple[Work, Answer]]:
        """Those that are done; what died is submitted again."""
        import ray

        ready, _ = ray.wait(list(waiting), timeout=timeout) if waiting else ([], [])
        for reference in ready:
            work, attempt = waiting.pop(reference)
            answer, died = _result(reference)
            if died and attempt < ATTEMPTS:
                waiting[self._submit(work)] = work, attempt + 1
            else:
                yield work, answer


def why_nowhere(work: Work, nodes: Sequence[Node]) -> str | None:
    """Why none of the cluster's nodes can ever do it, which Ray would wait for; None where one can."""
    if work.sm is not None:
        names = ACCELERATORS.get(work.sm, ())
        nodes = [n for n in nodes if n["Labels"].get(LABEL) in names and n["Resources"].get("GPU", 0) >= 1]
        if not nodes:
            known = f" ({LABEL}: {', '.join(names)})" if names else ""
            return f"no node of the cluster has a GPU of SM{work.sm}{known}"
    largest = max((node["Resources"].get("memory", 0) for node in nodes), default=0)
    if work.memory > largest:
        return f"needs about {decimal(work.memory)} of memory, and the largest node that could do it has {decimal(int(largest))}"
    return None


def _result(reference: Any) -> tuple[Answer, bool]:
    """The answer, and whether it is none because a process or a node died."""
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, WorkerCrashedError

    try:
        return msgspec.json.decode(ray.get(reference), type=Answer), False
    except OutOfMemoryError:
        return Answer(lost="ran out of its node's memory"), False
    except (NodeDiedError, WorkerCrashedError) as error:
        return Answer(lost=f"its process or its node died ({type(error).__name__})"), True
    except RayError as error:
        return Answer(lost=f"{type(error).__name__}: {' '.join(str(error).split())}"), False


def _do(request: bytes) -> bytes:
    """In a process of the cluster."""
    from bei.compiler.fleet.do import do

    return do(request)
