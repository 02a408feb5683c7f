"""A fleet's builds: every model of a zoo file for every target, on this machine or on a cluster."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

import bei
from bei.compiler.build import host_memory
from bei.compiler.fleet.cells import Cell, CellTask, options_for
from bei.compiler.fleet.state import holding, read_state, write_state
from bei.compiler.fleet.work import Answer, Machine, Work, encoded
from bei.compiler.options import BuildOptions
from bei.compiler.planning.memory import build_memory
from bei.compiler.target import Target
from bei.compiler.zoo.sources import real_weights
from bei.compiler.zoo.zoo import ZooEntry, chosen
from bei.errors import BeiError
from bei.gpu import gpus
from bei.manifest import MANIFEST_FILE

STATE_FILE = "fleet.json"
STAND_INS = ".stand-ins"


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """All cells: models in the zoo's order, each with its targets in the order asked for."""

    bei_version: str
    cells: tuple[Cell, ...]

    @property
    def exit_code(self) -> int:
        """As of a single build: 2 where one could not be built, else 1 where one failed its gate."""
        if any(cell.outcome == "failed" for cell in self.cells):
            return 2
        return 1 if any(cell.verdict == "failed" for cell in self.cells) else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetOptions:
    """``only`` a glob over owner/name; ``weights_dir`` has folders owner--name. ``build`` is that of every cell, but for
    its checkpoint, target and place."""

    zoo: Path
    only: str
    targets: tuple[Target, ...]
    out: Path
    build: BuildOptions
    weights_dir: Path | None = None
    certified: bool = True
    cache: str | None = None


def compile_fleet(
    options: FleetOptions, machine: Machine, done: Callable[[Cell], None] = lambda cell: None
) -> Fleet:
    """Build what is not there yet; an error of one cell is its reason. ``done`` is told of each when it ends.

    Raises BeiError where nothing can be tried.
    """
    entries = chosen(options.zoo, options.only)
    with holding(options.out):
        return _Run(options, entries, done).through(machine)


class _Run:
    """The cells so far; the state file has them too, so that a run that is killed goes on where it was."""

    def __init__(
        self, options: FleetOptions, entries: Sequence[ZooEntry], done: Callable[[Cell], None]
    ) -> None:
        self._options, self._entries, self._done = options, entries, done
        self._state = options.out / STATE_FILE
        found = read_state(self._state, Fleet)
        self._earlier = {} if found is None else {(cell.repo, cell.target): cell for cell in found.cells}
        self._tasks: dict[bytes, CellTask] = {}
        self._cells: dict[tuple[str, str], Cell] = {}
        self._gpu_here = not isinstance(gpus(), str)

    def through(self, machine: Machine) -> Fleet:
        """All cells, one after the other or many at once."""
        try:
            for work, answer in machine.run(self._works()):
                self._note(_cell(self._tasks[work.request], answer))
        finally:
            shutil.rmtree(self._options.out / STAND_INS, ignore_errors=True)
        return _fleet(self._cells[e.repo, t.name] for e in self._entries for t in self._options.targets)

    def _works(self) -> Iterator[Work]:
        for entry in self._entries:
            try:
                folder = real_weights(entry, self._options.weights_dir)
                memory = self._memory(folder)
            except BeiError as error:
                for target in self._options.targets:
                    self._note(self._task(entry, target, None).cell(outcome="failed", reason=str(error)))
                continue
            for target in self._options.targets:
                task = self._task(entry, target, folder)
                work = Work(
                    request=encoded(task),
                    memory=memory[target.name],
                    gpu=self._gpu_here and target.device == "cuda",
                    sm=target.sms[0] if target.needs_gpu else None,
                )
                self._tasks[work.request] = task
                yield work

    def _memory(self, folder: Path | None) -> Mapping[str, int]:
        """By target; a stand-in is so small that only the tools count."""
        names = tuple(target.name for target in self._options.targets)
        if folder is None:
            return dict.fromkeys(names, build_memory(None, {}, certified=self._options.certified))
        options = replace(self._options.build, repo=str(folder), targets=names, offline=True)
        return host_memory(options, certified=self._options.certified)

    def _task(self, entry: ZooEntry, target: Target, folder: Path | None) -> CellTask:
        options, earlier = self._options, self._earlier.get((entry.repo, target.name))
        out = options.out.absolute()
        return CellTask(
            entry=entry,
            target=target.name,
            folder=None if folder is None else str(folder.absolute()),
            stand_ins=str(out / STAND_INS),
            out=str(out),
            options=options_for(target, options.build),
            certified=options.certified,
            cache=options.cache,
            earlier=earlier if earlier is not None and earlier.passed else None,
        )

    def _note(self, cell: Cell) -> None:
        self._cells[cell.repo, cell.target] = cell
        write_state(self._state, _fleet((self._earlier | self._cells).values()))
        self._done(cell)


def _fleet(cells: Iterable[Cell]) -> Fleet:
    return Fleet(bei_version=bei.__version__, cells=tuple(cells))


def _cell(task: CellTask, answer: Answer) -> Cell:
    """What a process says of its cell, if what it built is where it should be."""
    if answer.lost is not None:
        return task.cell(outcome="failed", reason=answer.lost)
    cell = msgspec.json.decode(answer.result, type=Cell)
    if cell.bundle is not None and not Path(task.out, cell.bundle, MANIFEST_FILE).is_file():
        reason = f"built on {cell.node}, but not to be seen here. Give an --out that all nodes share."
        return msgspec.structs.replace(cell, outcome="failed", reason=reason)
    return cell
