"""Reading model_zoo.yaml: the models that are served, with where they come from and what is known about them."""

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from bei.errors import CheckpointError
from bei.manifest import Task

Text = Annotated[str, msgspec.Meta(min_length=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Status = Literal["supported", "convert", "planned"]
Precision = Literal["fp32", "fp16", "bf16"]

_REPO = re.compile(r"[\w.-]+/[\w.-]+")


class ZooEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model; the head of model_zoo.yaml explains the fields."""

    repo: Text
    revision: Text
    task: Task
    adapter: Text
    params: Count
    licence: Text
    max_length: Count
    status: Status
    matryoshka: tuple[Count, ...] = ()
    prompts: dict[str, Text] = {}
    tolerances: dict[Precision, dict[str, float]] = {}
    note: str = ""
    unverified: tuple[Text, ...] = ()

    @property
    def slug(self) -> str:
        """The name of its folder: owner--name."""
        return self.repo.replace("/", "--")


def load_zoo(path: Path) -> tuple[ZooEntry, ...]:
    """Every entry in the file's order; raises CheckpointError for a file that cannot be read or says nonsense."""
    entries = _parse(path)
    if not isinstance(entries, list) or not entries:
        raise CheckpointError(f"{path}: need a list of models. See model_zoo.yaml in bei's repository.")
    found = tuple(_entry(path, number, entry) for number, entry in enumerate(entries, 1))
    _check_names(path, found)
    return found


def check_adapter(entry: ZooEntry, found: str) -> None:
    """Raises CheckpointError unless the checkpoint is read by the adapter that the zoo says."""
    if found != entry.adapter:
        raise CheckpointError(f"{entry.repo}: read by the adapter {found}, but the zoo says {entry.adapter}.")


def chosen(path: Path, only: str) -> tuple[ZooEntry, ...]:
    """The entries whose owner/name matches the glob ``only``. Raises CheckpointError as `load_zoo`, and for none."""
    entries = tuple(entry for entry in load_zoo(path) if fnmatch.fnmatchcase(entry.repo, only))
    if not entries:
        raise CheckpointError(f"{path}: no model matches {only!r}. Use a glob such as 'BAAI/*'.")
    return entries


def _parse(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}). Give the path of a zoo file."
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise CheckpointError(f"{path}: not valid YAML ({_one_line(error)}). Mend the file.") from None


def _entry(path: Path, number: int, entry: Any) -> ZooEntry:
    try:
        return msgspec.convert(entry, ZooEntry)
    except msgspec.ValidationError as error:
        name = entry.get("repo") if isinstance(entry, dict) else None
        raise CheckpointError(
            f"{path}: model {number} ({name or 'no repo'}): {error}. Mend the entry."
        ) from None


def _check_names(path: Path, entries: Sequence[ZooEntry]) -> None:
    names = [entry.repo for entry in entries]
    for name in names:
        if not _REPO.fullmatch(name):
            raise CheckpointError(f"{path}: repo {name!r} is not a Hub id (need owner/name). Mend the entry.")
        if names.count(name) > 1:
            raise CheckpointError(f"{path}: {name} is listed {names.count(name)} times. Keep one entry.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
