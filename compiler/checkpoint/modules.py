"""sentence-transformers' own files: which there are, and the list of modules."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bei.compiler.checkpoint.files import is_inside, read_json, read_object
from bei.errors import CheckpointError

MODULES = "modules.json"
CONFIG = "config_sentence_transformers.json"
SENTENCE_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
"""Settings of the Transformer module; the first that exists counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Module:
    """One entry of modules.json: the class's own name, and its folder relative to the checkpoint ("" is the root)."""

    kind: str
    path: str

    def file(self, name: str) -> str:
        """The path of one of its files, relative to the checkpoint."""
        return f"{self.path}/{name}" if self.path else name

    def config(self, folder: Path) -> dict[str, Any]:
        """Its config.json, or an empty one where there is none (sentence-transformers does the same)."""
        name = self.file("config.json")
        return read_object(folder, name) if (folder / name).exists() else {}


def read_modules(folder: Path) -> tuple[Module, ...] | None:
    """The modules in order, None without modules.json; raises CheckpointError for one with code of its own."""
    if not (folder / MODULES).exists():
        return None
    entries = read_json(folder, MODULES)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise CheckpointError(f"{MODULES}: need a list of modules. The file is damaged; download it again.")
    return tuple(_module(entry) for entry in entries)


def _module(entry: Mapping[str, Any]) -> Module:
    kind, path = entry.get("type"), entry.get("path")
    if not isinstance(kind, str) or not isinstance(path, str):
        raise CheckpointError(
            f"{MODULES}: an entry without type or path ({dict(entry)!r}). Download it again."
        )
    if not is_inside(path):
        raise CheckpointError(
            f"{MODULES}: {path!r} leads out of the checkpoint. Such a checkpoint is not trusted."
        )
    package, _, name = kind.rpartition(".")
    if package.split(".")[0] != "sentence_transformers":
        raise CheckpointError(
            f"{MODULES}: {kind!r} is the checkpoint's own code, which is never executed. "
            "Use a revision or a model that needs sentence-transformers alone."
        )
    return Module(kind=name, path=path.strip("/"))


def module_files(folder: Path) -> list[str]:
    """The files that the modules after the first may have, relative to the checkpoint; not all of them exist."""
    modules = read_modules(folder) or ()
    return [
        module.file(name)
        for module in modules
        if module.path
        for name in ("config.json", "model.safetensors")
    ]
