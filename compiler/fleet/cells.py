"""One model for one target: the smallest piece of a fleet's builds, and what came of it."""

import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from bei.adapters.registry import adapter_for
from bei.cards import card
from bei.compiler.cache.cache import compile_request, open_cache
from bei.compiler.cache.request import Request, request_of
from bei.compiler.engines.portability import NOT_PORTABLE
from bei.compiler.options import BuildOptions
from bei.compiler.planning.show import surprises
from bei.compiler.target import Target
from bei.compiler.zoo.sources import Weights, stand_in
from bei.compiler.zoo.zoo import ZooEntry, check_adapter
from bei.errors import BeiError, BundleError, InputError
from bei.manifest import Manifest, Task, Verdict
from bei.runtime.bundle import open_bundle, read_bundle

Outcome = Literal["built", "cached", "kept", "failed"]
"""``kept``: it was there already, from an earlier run."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """``bundle`` relative to the output folder, its ``size`` in bytes; ``key`` decides its content and ``digest`` is its
    manifest's. ``reason`` where it failed, ``warnings`` where it did not."""

    repo: str
    adapter: str
    task: Task
    target: str
    weights: Weights
    outcome: Outcome
    verdict: Verdict | None = None
    bundle: str | None = None
    size: int | None = None
    key: str | None = None
    digest: str | None = None
    node: str | None = None
    reason: str | None = None
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """There, and no gate failed."""
        return self.outcome != "failed" and self.verdict != "failed"


class CellTask(msgspec.Struct, frozen=True, kw_only=True, tag="compile"):
    """``folder`` of real weights; None: a stand-in, kept in ``stand_ins``. ``out`` is the output folder of all cells.
    ``earlier``: the cell of an earlier run, where that passed."""

    entry: ZooEntry
    target: str
    folder: str | None
    stand_ins: str
    out: str
    options: BuildOptions
    certified: bool
    cache: str | None
    earlier: Cell | None = None

    @property
    def bundle(self) -> str:
        """Target first: one folder holds what one kind of machine serves. A stand-in is called one."""
        mark = "" if self.folder is not None else ".stand-in"
        return f"{self.target}/{self.entry.repo}{mark}.bundle"

    def cell(self, **facts: Any) -> Cell:
        """What came of it."""
        return Cell(
            repo=self.entry.repo,
            adapter=self.entry.adapter,
            task=self.entry.task,
            target=self.target,
            weights="synthetic" if self.folder is None else "real",
            **facts,
        )


def options_for(target: Target, build: BuildOptions) -> BuildOptions:
    """Of a fleet's options, those that are about the target: portability is TensorRT's, a card is for what runs on it,
    and a CPU engine has one layout and one precision."""
    if target.device == "cpu":
        build = replace(build, layout="padded", precision="auto", policy=None, calibration=None)
    portability = build.portability if target.backend == "tensorrt" else NOT_PORTABLE
    on_card = build.card is not None and card(build.card).sm in portability.runs_on(target).sms
    return replace(build, portability=portability, card=build.card if on_card else None)


def compile_cell(task: CellTask) -> Cell:
    """Find it done, in the cache, or build it. An error is its reason; never raises BeiError."""
    started = time.perf_counter()
    try:
        cell = _compiled(task)
    except BeiError as error:
        cell = task.cell(outcome="failed", reason=str(error))
    seconds = round(time.perf_counter() - started, 2)
    return msgspec.structs.replace(cell, node=platform.node(), seconds=seconds)


def _compiled(task: CellTask) -> Cell:
    request = _request(task)
    if task.earlier is not None and _still_there(task.earlier, request):
        return msgspec.structs.replace(task.earlier, outcome="kept", warnings=())
    warnings: list[str] = []
    compiled = compile_request(
        request,
        None if task.cache is None else open_cache(task.cache),
        certify=_certifier() if task.certified else None,
        warn=warnings.append,
    )
    manifest = read_bundle(request.out).manifest
    return task.cell(
        outcome="cached" if compiled.cached else "built",
        verdict=manifest.parity.verdicts[task.target],
        bundle=task.bundle,
        size=sum(record.size for record in manifest.files.values()),
        key=request.key,
        digest=manifest.digest,
        warnings=(*warnings, *surprises(manifest)),
    )


def _request(task: CellTask) -> Request:
    out, folder = Path(task.out), task.folder
    if not out.is_dir():
        raise InputError(f"{out}: no such folder on {platform.node()}. Give an --out that all nodes share.")
    if folder is not None and not Path(folder).is_dir():
        raise InputError(
            f"{folder}: no such folder on {platform.node()}. Give --weights that all nodes share."
        )
    if folder is None:
        folder = str(stand_in(task.entry, Path(task.stand_ins)))
    bundle = out / task.bundle
    bundle.parent.mkdir(parents=True, exist_ok=True)
    options = replace(task.options, repo=folder, out=bundle, targets=(task.target,), offline=True)
    request = request_of(options, certified=task.certified)
    check_adapter(task.entry, adapter_for(request.checkpoint.config).name)
    return request


def _still_there(earlier: Cell, request: Request) -> bool:
    if earlier.key != request.key:
        return False
    try:
        return open_bundle(request.out).manifest.digest == earlier.digest
    except BundleError:
        return False


def _certifier() -> Callable[[Path, Path], Manifest]:
    from bei.compiler.parity.certificate import certifier

    return certifier()
