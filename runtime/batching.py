"""From row lengths to batches: pure functions, shared by the Python API and the scheduler."""

from collections.abc import Sequence
from dataclasses import dataclass

from bei.manifest import Device, EngineRecord, Layout, Limits, Profile

CPU_BATCH_TOKENS = 128
"""Budget of one call of a CPU engine: its caches, not its cores, decide. Measured on MiniLM fp32 (onnxruntime 1.32, two
cores of an AVX2 EPYC): CPU time a token is within 3 % from 128 to 256, and 1.1 × at 512, 1.4 × at 2048."""

CPU_WASTE = 0.125
GPU_WASTE = 0.25
"""Share of a batch that may be padding when requests are put together: a CPU gains little from fuller batches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What one engine call may hold: ``max_tokens`` (padding included), ``max_rows``, and ``max_waste``, the share of
    padding up to which rows of different requests are put together. A packed engine (``padded`` False) has no padding.
    ``profiles``: a batch must also fit one of these; empty where the engine takes any shape.
    """

    max_tokens: int
    max_rows: int
    padded: bool = True
    max_waste: float = GPU_WASTE
    profiles: tuple[Profile, ...] = ()

    def rows(self, longest: int) -> int:
        """The most rows that may run with one of ``longest`` tokens, all of them that long."""
        shapes = [p.max_batch for p in self.profiles if longest <= p.max_length]
        return max(1, min(self.max_rows, self.max_tokens // longest, max(shapes, default=self.max_rows)))

    def slots(self, rows: int, longest: int, real_tokens: int) -> int:
        """Tokens that the engine computes for such a batch, padding included."""
        return rows * longest if self.padded else real_tokens

    def fits(self, rows: int, longest: int, real_tokens: int) -> bool:
        """Whether that many rows may run together; a single row always may."""
        if rows <= 1:
            return True
        tokens = self.slots(rows, longest, real_tokens)
        if rows > self.max_rows or tokens > self.max_tokens:
            return False
        return not self.profiles or any(
            rows <= p.max_batch and longest <= p.max_length and tokens <= p.max_tokens for p in self.profiles
        )

    def wastes(self, rows: int, longest: int, real_tokens: int) -> bool:
        """Whether such a batch would hold more padding than ``max_waste``."""
        return self.padded and rows * longest - real_tokens > self.max_waste * rows * longest


def budget_for(record: EngineRecord, limits: Limits, max_tokens: int | None = None) -> Budget:
    """The engine's budget within the bundle's limits; ``max_tokens`` overrides the measured default."""
    return budget_of(record.device, record.layout, limits, max_tokens, record.profiles)


def budget_of(
    device: Device,
    layout: Layout,
    limits: Limits,
    max_tokens: int | None = None,
    profiles: tuple[Profile, ...] = (),
) -> Budget:
    """The same for an engine that need not be there."""
    default = CPU_BATCH_TOKENS if device == "cpu" else limits.max_batch_tokens
    return Budget(
        max_tokens=min(max_tokens or default, limits.max_batch_tokens),
        max_rows=limits.max_batch,
        padded=layout == "padded",
        max_waste=CPU_WASTE if device == "cpu" else GPU_WASTE,
        profiles=profiles,
    )


def plan(lengths: Sequence[int], budget: Budget) -> list[list[int]]:
    """Batches of indices into ``lengths``: each index once, longest rows first, neighbours in length together.

    A row that alone exceeds the budget is a batch by itself. Padding in all is at most max_rows · (longest − shortest),
    since the batches are consecutive runs of one sorted order.
    """
    batches: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches:
            longest = lengths[batches[-1][0]]
            if budget.fits(len(batches[-1]) + 1, longest, tokens + lengths[index]):
                batches[-1].append(index)
                tokens += lengths[index]
                continue
        batches.append([index])
        tokens = lengths[index]
    return batches
