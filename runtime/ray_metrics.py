"""The metrics of every replica through Ray's own exporter, since a request for /metrics reaches only one of them."""

from collections.abc import Sequence

from ray.serve.metrics import Counter, Gauge

from bei.runtime.metrics import COUNTS, GAUGES
from bei.runtime.service import Service

LABELS = ("model",)
"""Ray adds the application's, the deployment's and the replica's."""


class RayMetrics:
    """What /metrics says of queues and engines, as ray_bei_…, whenever it is published. Ray's counters only take what is
    added, so what they already have is remembered."""

    def __init__(self, services: Sequence[Service]) -> None:
        self._services = services
        self._gauges = [(Gauge(name, text, LABELS), read) for name, (text, read) in GAUGES.items()]
        self._counters = [(Counter(name, text, LABELS), read) for name, (text, read) in COUNTS.items()]
        self._published = {service.name: [0.0] * len(self._counters) for service in services}

    def publish(self) -> None:
        """As of now."""
        for service in self._services:
            labels = {"model": service.name}
            for gauge, read in self._gauges:
                gauge.set(float(read(service)), labels)
            before = self._published[service.name]
            for place, (counter, read) in enumerate(self._counters):
                count = float(read(service))
                if count > before[place]:
                    counter.inc(count - before[place], labels)
                    before[place] = count
