"""The bundles of one process, and which of them a request means."""

import asyncio
from collections.abc import Iterator, Mapping

from bei.errors import InputError, ModelNotFound, WrongTask
from bei.manifest import Task
from bei.runtime import stages
from bei.runtime.service import Service

HOW: dict[Task, str] = {"embed-tokens": " Compile one with bei-compile --token-embeddings."}
"""How to get a model for a task, where that is not obvious."""


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
        found = self.find(name)
        if found is None:
            raise ModelNotFound(f"model: {name!r} is not served here; there is {', '.join(self._services)}.")
        return found

    def find(self, name: str, *tasks: Task) -> Service | None:
        """As `named`; of several from one repository the first that is for one of ``tasks``, if any is."""
        of_repo = [service for service in self if service.manifest.source.repo == name]
        fitting = [service for service in of_repo if service.manifest.head.task in tasks]
        return self._services.get(name) or next(iter(fitting or of_repo), None)

    def any(self, name: str | None) -> Service:
        """For what every model can do. Raises ModelNotFound, InputError when there are several and no name."""
        found = None if name is None else self.find(name)
        return _noted(found or self._only(name, list(self)))

    def choose(self, name: str | None, *tasks: Task) -> Service:
        """The service that a request for one of ``tasks`` means by the name it gives, or by none.

        Without a name that is known, the only one for the first of the tasks that any is for; unless names are strict.
        Raises ModelNotFound, InputError when several fit, WrongTask.
        """
        chosen = None if name is None else self.find(name, *tasks)
        if chosen is None:
            of_task = ([service for service in self if service.manifest.head.task == task] for task in tasks)
            chosen = self._only(name, next(filter(None, of_task), list(self)[:1]))
        have = chosen.manifest.head.task
        if have not in tasks:
            raise WrongTask(
                f"{chosen.name} is made for {have!r}, this route needs a model for {' or '.join(tasks)}."
                f"{HOW.get(tasks[0], '')}"
            )
        return _noted(chosen)

    def _only(self, name: str | None, fitting: list[Service]) -> Service:
        if name is not None and (self._strict or len(fitting) > 1):
            return self.named(name)
        if len(fitting) > 1:
            several = ", ".join(service.name for service in fitting)
            raise InputError(f"model: several fit here, name one of {several}.")
        return fitting[0]


def _noted(service: Service) -> Service:
    """Remember whom the request is for."""
    record = stages.current()
    if record is not None:
        record.model = service.name
    return service
