"""Execution contexts: one for each optimisation profile, one for each CUDA graph, all on one workspace.

A context is told its workspace (`USER_MANAGED`), sized for the batch at hand. Contexts that never run at the same time
share it, so the plan's memory is that of its largest batch and not the sum over profiles.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bei.errors import EngineError
from bei.runtime.cuda_memory import Memory

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

GRAPH_TOKENS = 2048
"""Padded tokens up to which a batch is worth a CUDA graph: larger ones compute for longer than they take to launch."""

GRAPH_AFTER = 3
"""Times a shape has come when its graph is made; most shapes come once."""

GRAPHS = 32
"""Graphs kept, the ones used last."""

SHAPES = 4096
"""Shapes counted before the counts start anew."""

WORKSPACE = "workspace"


class Lane:
    """A context that stays on one profile. Errors begin with ``target``."""

    def __init__(self, target: str, context: Any, profile: int, memory: Memory, output: str) -> None:
        if not context.set_optimization_profile_async(profile, memory.stream):
            raise EngineError(f"{target}: the library refused profile {profile}.")
        self._target, self._context, self._memory, self._output = target, context, memory, output

    def bind(self, shapes: Shapes, addresses: Mapping[str, int]) -> Shape:
        """Tell the context what is to be computed; the shape of the output. Raises EngineError."""
        context, memory = self._context, self._memory
        for name, shape in shapes.items():
            context.set_input_shape(name, shape)
            context.set_tensor_address(name, addresses[name])
        missing = context.infer_shapes()
        if missing:
            raise EngineError(
                f"{self._target}: the plan wants inputs that were not given: {', '.join(missing)}."
            )
        shape = tuple(context.get_tensor_shape(self._output))
        nbytes = 4
        for size in shape:
            nbytes *= size
        context.set_tensor_address(self._output, memory.reserve(self._output, nbytes))
        workspace = int(context.update_device_memory_size_for_shapes())
        context.set_device_memory(memory.reserve(WORKSPACE, workspace), workspace)
        return shape

    def enqueue(self) -> None:
        """Queue the batch that was bound."""
        if not self._context.execute_async_v3(self._memory.stream):
            raise EngineError(f"{self._target}: the library could not run the batch.")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Captured:
    """A graph, the lane whose context it was captured from (which no other batch may touch), and the output's shape."""

    graph: Any
    lane: Lane
    shape: Shape


class Graphs:
    """Batches of a shape that keeps coming, each replayed as one CUDA graph. Only for a library that does not do so
    itself. ``lane`` makes a new lane on a profile."""

    def __init__(self, lane: Callable[[int], Lane], memory: Memory) -> None:
        self._lane, self._memory = lane, memory
        self._captured: OrderedDict[tuple[Shape, ...], _Captured] = OrderedDict()
        self._seen: Counter[tuple[Shape, ...]] = Counter()
        self._moves = memory.moves
        self._refused: str | None = None

    def replay(self, profile: int, shapes: Shapes, addresses: Mapping[str, int], slots: int) -> Shape | None:
        """Queue the batch through its graph and return the output's shape; None when it has none (``slots`` are its
        padded tokens). The inputs are on the device already."""
        if self._refused is not None or slots > GRAPH_TOKENS:
            return None
        if self._memory.moves != self._moves:
            self.clear()
        key = tuple(shapes.values())
        if key not in self._captured:
            return self._capture(key, profile, shapes, addresses) if self._often(key) else None
        self._captured.move_to_end(key)
        found = self._captured[key]
        self._memory.replay(found.graph)
        return found.shape

    def describe(self) -> str:
        """How many there are, or why there are none."""
        return self._refused or str(len(self._captured))

    def clear(self) -> None:
        """Free all of them."""
        while self._captured:
            self._memory.forget(self._captured.popitem()[1].graph)
        self._moves = self._memory.moves

    def _often(self, key: tuple[Shape, ...]) -> bool:
        if len(self._seen) >= SHAPES:
            self._seen.clear()
        self._seen[key] += 1
        return self._seen[key] >= GRAPH_AFTER

    def _capture(
        self, key: tuple[Shape, ...], profile: int, shapes: Shapes, addresses: Mapping[str, int]
    ) -> Shape | None:
        """Capturing runs the batch once for real, so its result is there."""
        lane = self._lane(profile)
        shape = lane.bind(shapes, addresses)
        try:
            graph = self._memory.capture(lane.enqueue)
        except EngineError as error:
            self._refused = f"off: {error}"
            return None
        if len(self._captured) >= GRAPHS:
            self._memory.forget(self._captured.popitem(last=False)[1].graph)
        self._captured[key] = _Captured(graph=graph, lane=lane, shape=shape)
        return shape
