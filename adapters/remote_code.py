"""The checkpoint's own Python code, as config.json's `auto_map` names it. It is never executed; an adapter may replace it.

"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}                      a file of the checkpoint itself
"auto_map": {"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"}       a file of another repository
"""

import fnmatch
from collections.abc import Collection
from typing import NamedTuple

from bei.adapters.base import Adapter, HfConfig


class RemoteClass(NamedTuple):
    """``name`` is module.Class; ``repository`` owner/name, None for the checkpoint itself; ``key`` such as AutoModel."""

    key: str
    repository: str | None
    name: str

    def __str__(self) -> str:
        return self.name if self.repository is None else f"{self.repository}--{self.name}"


def remote_classes(hf: HfConfig) -> tuple[RemoteClass, ...]:
    """All that `auto_map` names, in its order."""
    auto_map = hf.get("auto_map", {})
    entries = auto_map.items() if isinstance(auto_map, dict) else [("", auto_map)]
    return tuple(
        _parsed(str(key), str(target))
        for key, value in entries
        for target in (value if isinstance(value, list) else [value])
        if target
    )


def is_replaced(found: RemoteClass, adapter: Adapter) -> bool:
    """Whether ``adapter`` says that it does what ``found`` does.

    A file of the checkpoint itself is known by its names. Another repository must be one that the adapter knows: there
    the same names may stand for anything.
    """
    known = found.repository is None or found.repository in adapter.code_repositories
    return known and any(fnmatch.fnmatchcase(found.name, pattern) for pattern in adapter.remote_code)


def known_repositories(unknown: Collection[RemoteClass], adapters: Collection[Adapter]) -> list[str]:
    """Where code with the names of ``unknown`` is known to lie."""
    names = [found._replace(repository=None) for found in unknown]
    return sorted(
        {
            repository
            for adapter in adapters
            if all(is_replaced(name, adapter) for name in names)
            for repository in adapter.code_repositories
        }
    )


def _parsed(key: str, target: str) -> RemoteClass:
    repository, found, name = target.rpartition("--")
    return RemoteClass(key, repository if found else None, name)
