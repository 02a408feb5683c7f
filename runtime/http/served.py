"""The bundles of one process, and which of them a request means."""

import asyncio
from collections.abc import Iterator, Mapping

from bei.errors import InputError, ModelNotFound, WrongTask
from bei.manifest import Task
from bei.runtime.service import Service


class Served:
    """At least one service, by name. Iterates over them in the order given."""

    def __init__(self, services: Mapping[str, Service], *, strict: bool = False) -> None:
        if not services:
            raise ValueError("nothing to serve")
        self._services = dict(services)
        self._strict = strict

    def __iter__(self) -> Iterator[Service]:
        return iter(self._services.values())

    @property
    def ready(self) -> bool:
        return all(service.ready for service in self)

    def start(self) -> None:
        for service in self:
            service.start()

    async def close(self, drain_seconds: float) -> None:
        await asyncio.gather(*(service.close(drain_seconds) for service in self))

    def named(self, name: str) -> Service:
        """By its served name, else by the repository it came from. Raises ModelNotFound."""
        for key, service in self._services.items():
            if name in (key, service.manifest.source.repo):
                return service
        raise ModelNotFound(f"model: {name!r} is not served here; there is {', '.join(self._services)}.")

    def choose(self, name: str | None, *tasks: Task) -> Service:
        """The service that a request for one of ``tasks`` means by the name it gives, or by none.

        Where only one fits the tasks, any name will do unless names are strict. Raises ModelNotFound, InputError when
        several fit, WrongTask.
        """
        try:
            chosen = self.named(name) if name is not None else None
        except ModelNotFound:
            if self._strict:
                raise
            chosen = None
        if chosen is None:
            fitting = [service for service in self if service.manifest.head.task in tasks]
            chosen = fitting[0] if len(fitting) == 1 else None
        if chosen is None:
            chosen = self._only(name)
        have = chosen.manifest.head.task
        if have not in tasks:
            raise WrongTask(
                f"{chosen.name} is made for {have!r}, this route needs a model for {' or '.join(tasks)}."
            )
        return chosen

    def _only(self, name: str | None) -> Service:
        if len(self._services) == 1:
            return next(iter(self))
        if name is not None:
            return self.named(name)
        raise InputError(f"model: several are served here, name one of {', '.join(self._services)}.")
