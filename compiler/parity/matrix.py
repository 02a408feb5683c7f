"""The zoo's matrix: every model of model_zoo.yaml compiled for the CPU and held to its reference.

Real weights where this machine has them, a stand-in of reduced size otherwise; a row says which.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import msgspec

import bei
from bei.adapters.registry import adapter_for
from bei.compiler.build import compile_bundle, host_memory
from bei.compiler.cache.key import bundle_key
from bei.compiler.checkpoint.checkpoint import open_checkpoint, source_record
from bei.compiler.fleet.work import Machine, Work, encoded
from bei.compiler.options import BuildOptions
from bei.compiler.parity.bundles import Texts, builtin_texts, check_bundle
from bei.compiler.parity.html import page, pill
from bei.compiler.parity.numbers import number
from bei.compiler.parity.report import EngineReport
from bei.compiler.planning.memory import build_memory
from bei.compiler.target import parse_target
from bei.compiler.zoo.sources import Weights, real_weights, stand_in
from bei.compiler.zoo.zoo import ZooEntry, check_adapter, chosen
from bei.errors import BeiError
from bei.manifest import Source, Task, Verdict
from bei.runtime.bundle import read_bundle

TARGET = "onnxruntime-cpu"
TEXTS = 24
"""Built-in texts a model, evenly chosen."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One model. ``cosine`` and ``logit_error`` are the worst text's, whichever the task has; ``reason`` where it did
    not pass; ``seconds`` for compiling and checking. Rows of one ``key`` have the same numbers."""

    repo: str
    adapter: str
    task: Task
    weights: Weights | None
    verdict: Verdict
    cosine: float | None = None
    logit_error: float | None = None
    non_finite: float | None = None
    batch_difference: float | None = None
    padding_difference: float | None = None
    reference: str | None = None
    reason: str | None = None
    key: str | None = None
    seconds: float


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """All rows, in the zoo's order."""

    bei_version: str
    target: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Every model did."""
        return all(row.verdict == "passed" for row in self.rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixOptions:
    """``only`` a glob over owner/name; ``weights_dir`` has folders owner--name."""

    zoo: Path
    only: str = "*"
    weights_dir: Path | None = None


class RowTask(msgspec.Struct, frozen=True, kw_only=True, tag="parity"):
    """One model. ``folder`` of its real weights; None: a stand-in."""

    entry: ZooEntry
    folder: str | None


Told = Callable[[Row, Matrix], None]
"""Told of each row when it is known, with all that is known by then."""


def run_matrix(
    options: MatrixOptions,
    machine: Machine,
    *,
    earlier: Matrix | None = None,
    done: Told = lambda row, matrix: None,
) -> Matrix:
    """Check every entry; an error of one is its row's verdict. Rows that passed in an ``earlier`` run, and would be
    measured in the same way now, are kept.

    Raises CheckpointError for a zoo file that cannot be read, and when nothing matches ``only``.
    """
    entries = chosen(options.zoo, options.only)
    kept = {row.repo: row for row in earlier.rows if row.verdict == "passed"} if earlier else {}
    rows: dict[str, Row] = {}
    tasks: dict[bytes, tuple[ZooEntry, str]] = {}

    def note(row: Row) -> None:
        rows[row.repo] = row
        known = kept | rows
        done(row, _matrix(known[entry.repo] for entry in entries if entry.repo in known))

    def works() -> Iterator[Work]:
        for entry in entries:
            try:
                folder = real_weights(entry, options.weights_dir)
                key, memory = row_key(entry, folder), _memory(folder)
            except BeiError as error:
                note(_row(entry, reason=str(error)))
                continue
            if entry.repo in kept and kept[entry.repo].key == key:
                note(kept[entry.repo])
                continue
            task = RowTask(entry=entry, folder=None if folder is None else str(folder.absolute()))
            work = Work(request=encoded(task), memory=memory)
            tasks[work.request] = entry, key
            yield work

    for work, answer in machine.run(works()):
        entry, key = tasks[work.request]
        row = _row(entry, reason=answer.lost) if answer.lost else msgspec.json.decode(answer.result, type=Row)
        note(msgspec.structs.replace(row, key=key))
    return _matrix(rows[entry.repo] for entry in entries)


def row_key(entry: ZooEntry, folder: Path | None) -> str:
    """What decides a row's numbers, as one hash: the entry, the checkpoint (a stand-in follows from the entry and the
    code), and the tools. Raises CheckpointError."""
    source = Source(repo=entry.repo, revision=None, files={})
    if folder is not None:
        source = source_record(open_checkpoint(str(folder)))
    key = bundle_key(source, BuildOptions(repo=entry.repo), (parse_target(TARGET),), certified=True)
    return hashlib.sha256(msgspec.json.encode([entry, folder is None, key], order="sorted")).hexdigest()


def check_row(task: RowTask) -> Row:
    """`check_entry` where the task was sent to."""
    folder = None if task.folder is None else Path(task.folder)
    with tempfile.TemporaryDirectory(prefix="bei-zoo-") as stand_ins:
        return check_entry(task.entry, folder, Path(stand_ins))


def check_entry(entry: ZooEntry, folder: Path | None, stand_ins: Path) -> Row:
    """Compile and measure one model, from its ``folder`` or else as a stand-in, kept in ``stand_ins``; never raises
    BeiError."""
    started = time.perf_counter()
    row = _row(entry, weights="synthetic" if folder is None else "real")
    try:
        folder = stand_in(entry, stand_ins) if folder is None else folder
        check_adapter(entry, adapter_for(open_checkpoint(str(folder)).config).name)
        row = _measured(row, _check(folder))
    except BeiError as error:
        row = msgspec.structs.replace(row, reason=str(error))
    return msgspec.structs.replace(row, seconds=round(time.perf_counter() - started, 2))


def _row(entry: ZooEntry, *, weights: Weights | None = None, reason: str | None = None) -> Row:
    """Not passed, so far."""
    return Row(
        repo=entry.repo,
        adapter=entry.adapter,
        task=entry.task,
        weights=weights,
        verdict="failed",
        reason=reason,
        seconds=0,
    )


def _matrix(rows: Iterable[Row]) -> Matrix:
    return Matrix(bei_version=bei.__version__, target=TARGET, rows=tuple(rows))


def _memory(folder: Path | None) -> int:
    if folder is None:  # so small that only the tools count
        return build_memory(None, {}, certified=True)
    options = BuildOptions(repo=str(folder), targets=(TARGET,), offline=True)
    return host_memory(options, certified=True)[TARGET]


def _check(folder: Path) -> EngineReport:
    with tempfile.TemporaryDirectory(prefix="bei-matrix-") as name:
        out = Path(name) / "bundle"
        compile_bundle(BuildOptions(repo=str(folder), out=out, targets=(TARGET,), offline=True))
        bundle = read_bundle(out)
        every = builtin_texts(bundle.manifest)
        step = max(1, len(every.samples) // TEXTS)
        some = Texts(source=f"built-in, every {step}th", samples=every.samples[::step])
        return check_bundle(bundle, folder, some).engines[0]


def _measured(row: Row, engine: EngineReport) -> Row:
    failed = [f"{m.meaning} {number(m.value)}" for m in engine.measures if m.passed is False]
    return msgspec.structs.replace(
        row,
        verdict=engine.verdict,
        cosine=engine.value("cosine_min"),
        logit_error=engine.value("logit_error"),
        non_finite=engine.value("non_finite"),
        batch_difference=engine.value("batch_difference"),
        padding_difference=engine.value("padding_difference"),
        reference=None if engine.reference is None else engine.reference.name,
        reason=engine.reason or "; ".join(failed) or None,
    )


COLUMNS = ("model", "adapter", "task", "weights", "verdict", "worst", "NaN", "batch", "padding", "seconds")


def cells(row: Row) -> tuple[str, ...]:
    """As `COLUMNS`. "worst" is the cosine of the text that is furthest off, or its logit error."""
    worst = f"cos {number(row.cosine)}" if row.cosine is not None else f"logit {number(row.logit_error)}"
    if row.cosine is None and row.logit_error is None:
        worst = "–"
    changes = (number(x) for x in (row.non_finite, row.batch_difference, row.padding_difference))
    facts = (row.repo, row.adapter, row.task, row.weights or "–", row.verdict, worst)
    return (*facts, *changes, f"{row.seconds:.1f}")


def render_matrix(matrix: Matrix) -> str:
    """The table as a page for people: one file, no script."""
    head = "".join(f'<th scope="col">{name}</th>' for name in COLUMNS)
    body = "".join(_html_row(row) for row in matrix.rows)
    count = sum(row.verdict == "passed" for row in matrix.rows)
    said = f"{count} of {len(matrix.rows)} passed, {matrix.target}, bei {escape(matrix.bei_version)}"
    title = f'<header><h1>Model zoo: parity</h1><p class="soft">{said}</p></header>'
    return page(
        "Model zoo: parity",
        f'{title}<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>',
    )


def _html_row(row: Row) -> str:
    parts = [f'<th scope="row">{escape(row.repo)}</th>']
    for name, cell in zip(COLUMNS[1:], cells(row)[1:], strict=True):
        parts.append(f"<td>{pill(row.verdict) if name == 'verdict' else escape(cell)}</td>")
    reason = (
        f'<tr><td colspan="{len(COLUMNS)}" class="soft">{escape(row.reason)}</td></tr>' if row.reason else ""
    )
    return f"<tr>{''.join(parts)}</tr>{reason}"
