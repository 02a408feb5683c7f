"""A checkpoint that is open: its configuration, where every tensor lies, and where it came from."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from bei.adapters.base import HfConfig
from bei.compiler.checkpoint.files import CARD, read_object
from bei.compiler.checkpoint.hub import TOKENIZER, Fetched, fetch
from bei.compiler.checkpoint.modules import CONFIG, MODULES, SENTENCE_CONFIGS, module_files
from bei.compiler.checkpoint.safetensors import INDEX, SINGLE, read_tensors
from bei.compiler.checkpoint.stored import StoredTensor
from bei.compiler.progress import QUIET, Progress, Stage
from bei.errors import CheckpointError
from bei.manifest import FileRecord, Source

CHUNK = 1 << 22
"""Bytes read at a time while hashing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """``repo`` as the user gave it; ``revision`` a commit hash, None for a local folder.

    ``tensors`` of the model's own weights (not of sentence-transformers modules). ``files``: relative posix paths of
    everything that decides what the model computes, plus the model card.
    """

    name: str
    repo: str
    revision: str | None
    license: str | None
    folder: Path
    config: HfConfig
    tensors: dict[str, StoredTensor]
    files: tuple[str, ...]


def open_checkpoint(
    repo: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    token: str | None = None,
    progress: Progress = QUIET,
) -> Checkpoint:
    """Fetch if needed, then read the configuration and every tensor's place; raises CheckpointError."""
    fetched = fetch(repo, revision=revision, offline=offline, token=token, progress=progress)
    if not (fetched.folder / "config.json").exists():
        found = sorted(path.name for path in fetched.folder.iterdir())
        held = f"it holds {', '.join(found[:5])}" if found else "it is empty"
        raise CheckpointError(
            f"{repo}: no config.json ({held}). Give the folder or repository of a checkpoint."
        )
    config = HfConfig(read_object(fetched.folder, "config.json"))
    tensors = read_tensors(fetched.folder)
    return Checkpoint(
        name=_name(fetched),
        repo=repo,
        revision=fetched.revision,
        license=fetched.license,
        folder=fetched.folder,
        config=config,
        tensors=tensors,
        files=_files(fetched.folder, tensors),
    )


def source_record(checkpoint: Checkpoint, progress: Progress = QUIET) -> Source:
    """Repository, revision, and the SHA-256 and size of each of the checkpoint's files; raises CheckpointError."""
    paths = {name: checkpoint.folder / name for name in checkpoint.files}
    try:
        with progress.stage("hashing", sum(path.stat().st_size for path in paths.values())) as stage:
            records = {name: _record(path, stage) for name, path in paths.items()}
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read ({error.strerror}).") from None
    return Source(repo=checkpoint.repo, revision=checkpoint.revision, files=records)


def _name(fetched: Fetched) -> str:
    return fetched.folder.name if fetched.revision is None else fetched.repo.rsplit("/", 1)[-1]


def _files(folder: Path, tensors: dict[str, StoredTensor]) -> tuple[str, ...]:
    names = ["config.json", CARD, MODULES, CONFIG, *SENTENCE_CONFIGS, *TOKENIZER, *module_files(folder)]
    weights = {tensor.file for tensor in tensors.values()}
    names += [*weights, *([INDEX] if SINGLE not in weights else [])]
    return tuple(sorted(name for name in set(names) if (folder / name).exists()))


def _record(path: Path, stage: Stage) -> FileRecord:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            stage.advance(len(chunk))
    return FileRecord(sha256=digest.hexdigest(), size=size)
