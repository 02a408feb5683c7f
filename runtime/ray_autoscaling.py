"""How many replicas a Ray Serve deployment needs: by the tokens that wait in them.

Ray calls the policy in its controller and takes it there by value, so this file imports nothing of ours at run time.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

    from bei.runtime.service import Service

QUEUED_TOKENS, BUSY = "queued_tokens", "busy"


class Load:
    """What a replica reports: its waiting tokens, and the share of the time since the last report that its busiest
    bundle's engines worked. A batch counts when it is done, so that a single report may be above 1."""

    def __init__(self, services: "Sequence[Service]") -> None:
        self._services = services
        self._before = (time.monotonic(), self._worked())

    def report(self) -> dict[str, float]:
        """Of now and of the time since the last report."""
        then, before = self._before
        self._before = now, after = time.monotonic(), self._worked()
        elapsed = max(now - then, 1e-9)
        busy = max(later - earlier for later, earlier in zip(after, before, strict=True)) / elapsed
        queued = sum(service.scheduler.queued_tokens for service in self._services)
        return {QUEUED_TOKENS: float(queued), BUSY: busy}

    def _worked(self) -> list[float]:
        """Each bundle's seconds of engine time, over the engines that it has side by side."""
        schedulers = (service.scheduler for service in self._services)
        return [scheduler.counts.seconds / max(1, scheduler.lanes) for scheduler in schedulers]


class QueuedTokens:
    """As many replicas as share the waiting tokens at ``target_tokens`` each, and no fewer than the work needs: engines
    that are busy without a queue keep their replicas, down to those that would work ``max_busy`` of their time.

    Ray applies its own bounds, factors and delays around it, and gives means over its look-back period.
    """

    def __init__(self, target_tokens: float = 16384, max_busy: float = 0.7) -> None:
        if target_tokens <= 0 or not 0 < max_busy <= 1:
            raise ValueError(
                f"QueuedTokens: got target_tokens={target_tokens}, max_busy={max_busy}; need more than 0, "
                "and a share above 0 and up to 1. Correct policy_kwargs."
            )
        self._target_tokens, self._max_busy = target_tokens, max_busy

    def __call__(self, context: "AutoscalingContext") -> tuple[float, dict[str, Any]]:
        """The number of replicas wanted, and no state; as it is until replicas have reported."""
        reported = context.aggregated_metrics or {}
        queued, busy = reported.get(QUEUED_TOKENS, {}), reported.get(BUSY, {})
        if not queued:
            return context.target_num_replicas, {}
        for_queue = sum(queued.values()) / self._target_tokens
        for_work = min(context.current_num_replicas, sum(busy.values()) / self._max_busy)
        return max(for_queue, for_work), {}
