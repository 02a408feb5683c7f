"""Where work is done: the machine that the options of a command ask for."""

from collections.abc import Iterable, Iterator

import msgspec

from bei.compiler.fleet.do import do
from bei.compiler.fleet.pool import Pool
from bei.compiler.fleet.ray_tasks import RayTasks
from bei.compiler.fleet.work import Answer, Machine, Work
from bei.compiler.planning.gate import free_memory
from bei.errors import InputError

SHARE = 0.9
"""Of the free memory; the rest makes up for what plans do not foresee."""


class Here:
    """This very process, one unit after the other."""

    def run(self, works: Iterable[Work]) -> Iterator[tuple[Work, Answer]]:
        """See `Machine.run`."""
        for work in works:
            yield work, msgspec.json.decode(do(work.request), type=Answer)


def machine_for(*, workers: int, ray: str | None, fresh: bool) -> Machine:
    """``ray`` None: this machine, with ``workers`` processes at most; else the cluster at that address ("": the one this
    machine knows). ``fresh``: a new process for every unit of work."""
    if ray is not None:
        return RayTasks(address=ray or None, fresh=fresh)
    free = free_memory()
    return Pool(workers=workers, memory=None if free is None else int(SHARE * free), fresh=fresh)


def check_workers(workers: int | None, ray: str | None) -> None:
    """Raises InputError for a number that cannot be, or one where it means nothing."""
    if workers is not None and workers < 1:
        raise InputError(f"--workers is {workers} (need at least 1).")
    if workers is not None and ray is not None:
        raise InputError(
            "--workers: is about this machine, and --ray leaves it to the cluster. Leave one out."
        )
