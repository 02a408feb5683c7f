"""From a Hub id or a folder to a folder: only the files that compiling needs, never code and never pickles.

Revisions, cache, offline mode, tokens, retries and `HF_ENDPOINT` are huggingface_hub's own. What it raises becomes one
CheckpointError that says what to do.
"""

import errno
import glob
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.hf_api import RepoFile

from bei import __version__
from bei.compiler.checkpoint.files import CARD, read_license
from bei.compiler.checkpoint.modules import CONFIG, MODULES, SENTENCE_CONFIGS, module_files
from bei.compiler.checkpoint.safetensors import INDEX, SINGLE, no_weights, weight_files
from bei.compiler.progress import QUIET, Progress, Stage
from bei.errors import CheckpointError

DESCRIPTION = ("config.json", CARD, INDEX, MODULES, CONFIG, *SENTENCE_CONFIGS)
"""Small files that decide which others are needed."""

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

_TransportError: Any = HfHubHTTPError.__mro__[1]
"""The base of the HTTP client's errors: httpx.HTTPError or httpx2.HTTPError, whichever huggingface_hub uses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """``revision`` is the commit hash, None for a local folder; ``license`` as the model card states it."""

    folder: Path
    repo: str
    revision: str | None
    license: str | None


def fetch(
    repo: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    token: str | None = None,
    progress: Progress = QUIET,
) -> Fetched:
    """The checkpoint's files on this machine; raises CheckpointError.

    ``repo`` is a folder if one of that name exists, otherwise a Hub id. ``revision``: a branch, tag, commit hash or
    `refs/pr/5`. ``offline`` uses the Hub cache alone (as `HF_HUB_OFFLINE=1` does).
    """
    if repo and Path(repo).is_dir():
        return _local(repo, revision)
    if _looks_local(repo):
        raise CheckpointError(
            f"{repo!r}: no such folder. Give a checkpoint's folder or a Hub id (owner/name)."
        )
    offline = offline or constants.is_offline_mode()
    with _explained(repo, revision, offline):
        folder, commit = _download(repo, revision, offline, token, progress)
    return Fetched(folder=folder, repo=repo, revision=commit, license=read_license(folder))


def _local(repo: str, revision: str | None) -> Fetched:
    if revision is not None:
        raise CheckpointError(f"{repo}: a local folder has no revisions (got {revision!r}). Leave it out.")
    folder = Path(os.path.abspath(repo))  # links keep their name, which names the bundle
    return Fetched(folder=folder, repo=repo, revision=None, license=read_license(folder))


def _looks_local(repo: str) -> bool:
    return repo.startswith((".", "/", "~")) or repo.count("/") > 1 or "\\" in repo or Path(repo).exists()


def _download(
    repo: str, revision: str | None, offline: bool, token: str | None, progress: Progress
) -> tuple[Path, str]:
    constants.HF_HUB_DISABLE_TELEMETRY = True  # it would tell which tools are installed and in use
    api = HfApi(token=token, library_name="bei", library_version=__version__)
    pinned = api.resolve_revision(repo, revision=revision, local_files_only=offline)

    def snapshot(names: Sequence[str], bar: type | None) -> Path:
        found = snapshot_download(
            repo,
            revision=pinned,
            token=token,
            local_files_only=offline,
            allow_patterns=[glob.escape(name) for name in names],
            tqdm_class=bar,
            library_name="bei",
            library_version=__version__,
        )
        return Path(found)

    folder = snapshot(DESCRIPTION, _bars(None))
    listed = _listing(api, repo, pinned, folder if offline else None)
    needed = [name for name in _needed(repo, folder, listed) if name in listed]
    missing = sum(listed[name] for name in needed if not (folder / name).exists())
    _check_space(repo, missing)
    with progress.stage("downloading", missing or None) as stage:
        snapshot(needed, _bars(stage))
    return folder, pinned.resolved


def _listing(api: HfApi, repo: str, pinned: str, cached: Path | None) -> dict[str, int]:
    """Path → bytes of the repository's files at this commit.

    ``cached`` is the snapshot's folder when the Hub may not be asked: caches written by old versions of
    huggingface_hub have no listing, so what is there counts.
    """
    try:
        return {file.path: file.size for file in get_cached_repo_tree(repo, revision=pinned)}
    except CachedRepoTreeNotFoundError:
        if cached is None:
            tree = api.list_repo_tree(repo, recursive=True, revision=pinned)
            return {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
    files = {path.relative_to(cached).as_posix(): path for path in cached.rglob("*") if path.is_file()}
    if SINGLE not in files and INDEX not in files:
        raise CheckpointError(f"{repo}: the Hub cache holds no weights of it. Run once without --offline.")
    return {name: path.stat().st_size for name, path in files.items()}


def _needed(repo: str, folder: Path, listed: Sequence[str] | dict[str, int]) -> list[str]:
    if SINGLE in listed:
        weights: Sequence[str] = (SINGLE,)
    elif INDEX in listed:
        weights = weight_files(folder)
    else:
        raise CheckpointError(no_weights(repo, listed))
    return [*TOKENIZER, *weights, *module_files(folder)]


def _check_space(repo: str, needed: int) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    there = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise CheckpointError(
            f"{repo}: needs {needed / 1e9:.2f} GB, but {cache} has {free / 1e9:.2f} GB free. "
            "Free some space, or set HF_HOME to a larger disk."
        )


def _bars(stage: Stage | None) -> type:
    """A progress bar class for huggingface_hub that counts the bytes written to disk into ``stage``."""

    class Bar:
        format_dict: ClassVar[dict[str, Any]] = {}

        def __init__(
            self, *args: Any, total: float | None = None, unit: str = "", desc: str = "", **_: Any
        ) -> None:
            self.n: float = 0
            self.total = total
            self._counts = stage is not None and unit == "B" and not desc.startswith("Downloading")

        def update(self, amount: float | None = 1) -> None:
            self.n += amount or 0
            if stage is not None and self._counts:
                stage.advance(int(amount or 0))

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

        def close(self) -> None:
            pass

        def refresh(self, *_: Any, **__: Any) -> None:
            pass

        set_description = set_description_str = set_postfix_str = refresh

    return Bar


@contextmanager
def _explained(repo: str, revision: str | None, offline: bool) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except (_TransportError, OSError, ValueError, EntryNotFoundError, RevisionResolutionError) as error:
        raise CheckpointError(_explain(error, repo, revision, offline)) from error
    except (AssertionError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{repo}: {constants.ENDPOINT} does not answer as a Hub does ({type(error).__name__}: {error}). "
            "Check HF_ENDPOINT."
        ) from error


def _explain(error: Exception, repo: str, revision: str | None, offline: bool) -> str:
    at = f"revision {revision!r}" if revision else "its default revision"
    login = "log in (hf auth login), set HF_TOKEN, or pass --token"
    if isinstance(error.__cause__, HfHubHTTPError):
        error = error.__cause__
    if isinstance(error, HFValidationError):
        return f"{repo!r}: neither a folder nor a Hub id (owner/name). Check the spelling."
    if isinstance(error, GatedRepoError):
        return (
            f"{repo}: gated, and this token (if any) has no access. Accept its terms at {constants.ENDPOINT}/{repo}, "
            f"then {login}."
        )
    if isinstance(error, RepositoryNotFoundError):
        return f"{repo}: no such repository at {constants.ENDPOINT}, or it is private. Check the name, or {login}."
    if isinstance(error, RevisionNotFoundError):
        return f"{repo}: no revision {revision!r}. Use a branch, a tag, a commit hash, or refs/pr/N."
    if isinstance(error, EntryNotFoundError | RevisionResolutionError) and offline:
        return (
            f"{repo}: {at} is not (completely) in the Hub cache {constants.HF_HUB_CACHE}, and the Hub may not be "
            f"asked. Run once without --offline and with HF_HUB_OFFLINE unset. ({_first_line(error)})"
        )
    if isinstance(error, HfHubHTTPError):
        return _explain_status(error, repo, login)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{repo}: the disk of {constants.HF_HUB_CACHE} is full. Free some space, or set HF_HOME to another disk."
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{repo}: {constants.HF_HUB_CACHE} cannot be written ({error.strerror}). Set HF_HOME to another folder."
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    return (
        f"{repo}: cannot be fetched from {constants.ENDPOINT} ({type(cause).__name__}: {_first_line(cause)}). "
        "Check the connection and HF_ENDPOINT, and try again; files fetched so far are kept."
    )


def _explain_status(error: HfHubHTTPError, repo: str, login: str) -> str:
    status = error.response.status_code
    if status == 401:
        return f"{repo}: {constants.ENDPOINT} does not accept the token. Get a valid one and {login}."
    if status == 403:
        return f"{repo}: access refused by {constants.ENDPOINT} ({_first_line(error)}). Check the token's permissions."
    if status == 404:
        return f"{repo}: a file listed by {constants.ENDPOINT} is gone ({error.request.url}). Try again."
    return (
        f"{repo}: {constants.ENDPOINT} answered {status} ({_first_line(error)}). "
        "Try again later; files fetched so far are kept."
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
