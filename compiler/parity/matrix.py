"""The zoo's matrix: every model of model_zoo.yaml compiled for the CPU and held to its reference.

Real weights where this machine has them, a stand-in of reduced size otherwise; a row says which.
"""

import fnmatch
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from html import escape
from multiprocessing import get_context
from pathlib import Path

import msgspec

import bei
from bei.adapters.registry import adapter_for
from bei.compiler.build import BuildOptions, compile_bundle
from bei.compiler.checkpoint.checkpoint import open_checkpoint
from bei.compiler.parity.bundles import Texts, builtin_texts, check_bundle
from bei.compiler.parity.html import page, pill
from bei.compiler.parity.numbers import number
from bei.compiler.parity.report import EngineReport
from bei.compiler.zoo.sources import Weights, fixture_or_weights
from bei.compiler.zoo.zoo import ZooEntry, load_zoo
from bei.errors import BeiError, ParityError
from bei.manifest import Task, Verdict
from bei.runtime.bundle import read_bundle

TEXTS = 24
"""Built-in texts a model, evenly chosen."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One model. ``cosine`` and ``logit_error`` are the worst text's, whichever the task has; ``reason`` where it did
    not pass; ``seconds`` for compiling and checking."""

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
    """``only`` a glob over owner/name; ``weights_dir`` has folders owner--name; ``workers`` processes."""

    zoo: Path
    only: str = "*"
    weights_dir: Path | None = None
    cache_dir: Path | None = None
    workers: int = 1


def run_matrix(options: MatrixOptions, done: Callable[[Row], None] = lambda row: None) -> Matrix:
    """Check every entry; an error of one is its row's verdict. ``done`` is called after each, in order.

    Raises CheckpointError for a zoo file that cannot be read and ParityError when nothing matches ``only``.
    """
    entries = [entry for entry in load_zoo(options.zoo) if fnmatch.fnmatchcase(entry.repo, options.only)]
    if not entries:
        raise ParityError(f"{options.zoo}: no model matches {options.only!r}. Use a glob such as 'BAAI/*'.")
    rows = []
    for row in _rows(entries, options):
        done(row)
        rows.append(row)
    return Matrix(bei_version=bei.__version__, target="onnxruntime-cpu", rows=tuple(rows))


def check_entry(entry: ZooEntry, weights_dir: Path | None, cache_dir: Path) -> Row:
    """Compile and measure one model; never raises BeiError."""
    started = time.perf_counter()
    row = Row(
        repo=entry.repo, adapter=entry.adapter, task=entry.task, weights=None, verdict="failed", seconds=0
    )
    try:
        folder, weights = fixture_or_weights(entry, weights_dir, cache_dir)
        row = msgspec.structs.replace(row, weights=weights)
        _require_adapter(entry, folder)
        row = _measured(row, _check(folder))
    except BeiError as error:
        row = msgspec.structs.replace(row, reason=str(error))
    return msgspec.structs.replace(row, seconds=round(time.perf_counter() - started, 2))


def _rows(entries: Sequence[ZooEntry], options: MatrixOptions) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="bei-zoo-") as name:
        cache = options.cache_dir or Path(name)
        if options.workers == 1:
            yield from (check_entry(entry, options.weights_dir, cache) for entry in entries)
            return
        # spawn: torch's threads do not survive a fork
        with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
            futures = [pool.submit(check_entry, entry, options.weights_dir, cache) for entry in entries]
            yield from (future.result() for future in futures)


def _require_adapter(entry: ZooEntry, folder: Path) -> None:
    found = adapter_for(open_checkpoint(str(folder)).config).name
    if found != entry.adapter:
        raise ParityError(f"{entry.repo}: read by the adapter {found}, but the zoo says {entry.adapter}.")


def _check(folder: Path) -> EngineReport:
    with tempfile.TemporaryDirectory(prefix="bei-matrix-") as name:
        out = Path(name) / "bundle"
        compile_bundle(BuildOptions(repo=str(folder), out=out, targets=("onnxruntime-cpu",), offline=True))
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
