"""A build that is asked for, known as far as its key: the checkpoint is open and hashed, no weight was looked at."""

from dataclasses import dataclass
from pathlib import Path

from bei.compiler.build import bundle_name, destination, open_source, plan_build
from bei.compiler.cache.key import bundle_key
from bei.compiler.checkpoint.checkpoint import Checkpoint, source_record
from bei.compiler.options import BuildOptions, check_request
from bei.compiler.progress import QUIET, Progress
from bei.manifest import Source


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """``source`` has the hashes of the checkpoint's files; ``key`` is that of the bundle."""

    options: BuildOptions
    checkpoint: Checkpoint
    source: Source
    key: str

    @property
    def out(self) -> Path:
        """The bundle's folder."""
        return destination(self.checkpoint, self.options)

    @property
    def name(self) -> str:
        """The bundle's name."""
        return bundle_name(self.checkpoint, self.options)


def request_of(options: BuildOptions, *, certified: bool, progress: Progress = QUIET) -> Request:
    """Everything that a build would refuse without looking at weights is refused here. Raises BeiError."""
    targets = check_request(options)
    if options.card is not None:
        plan_build(options)
    checkpoint = open_source(options, progress)
    source = source_record(checkpoint, progress)
    key = bundle_key(source, options, targets, certified=certified)
    return Request(options=options, checkpoint=checkpoint, source=source, key=key)
