"""What every export shares: a folder that appears complete or not at all, and the bundle's files in it."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from bei.errors import BundleError, InputError
from bei.manifest import EngineRecord, Manifest, TokenizerSpec
from bei.runtime.bundle import Bundle
from bei.runtime.tokenizer import Tokenizer

SOURCE_FOLDER = "source"
"""Where a bundle keeps the checkpoint's small files."""


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its name when the block ends without an error.

    Raises InputError when ``out`` exists and is not an empty folder, or cannot be written.
    """
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise InputError(f"{out}: exists already. Remove it, or give another --out.")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out}: the folder {out.absolute().parent} does not exist. Create it first.")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as temporary:
            folder = Path(temporary) / "export"
            folder.mkdir()
            yield folder
            os.replace(folder, out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}). Nothing was left behind.") from None


def choose(manifest: Manifest, targets: Iterable[str], *, allow_unverified: bool) -> EngineRecord:
    """The first of ``targets`` that the bundle has. Raises BundleError for none, or one that did not pass parity."""
    have = {record.target: record for record in manifest.engines}
    wanted = list(targets)
    record = next((have[target] for target in wanted if target in have), None)
    if record is None:
        raise BundleError(
            f"{manifest.name}: no engine for {' or '.join(map(repr, wanted))}; the bundle has {', '.join(have)}. "
            "Build one with bei-compile --target."
        )
    verdict = manifest.parity.verdicts.get(record.target, "not run")
    if verdict != "passed" and not allow_unverified:
        raise BundleError(
            f"{manifest.name}: {record.target} has parity verdict {verdict!r}, need 'passed'. "
            "Run bei-parity, or pass --allow-unverified."
        )
    return record


def copy_graph(bundle: Bundle, record: EngineRecord, folder: Path) -> None:
    """An ONNX engine as ``model.onnx`` with the weights it refers to beside it, at the names it refers to."""
    shutil.copyfile(bundle.path / record.path, folder / "model.onnx")
    for name in bundle.manifest.files:
        if name.endswith(".safetensors"):
            _copy(bundle.path / name, folder / name)


def copy_checkpoint(bundle: Bundle, folder: Path) -> None:
    """The checkpoint as it came, byte-identical. Raises BundleError when the bundle does not hold all of it."""
    files = bundle.manifest.files
    for name in bundle.manifest.source.files:
        kept = f"{SOURCE_FOLDER}/{name}"
        stored = kept if kept in files else name
        if stored not in files:
            raise BundleError(
                f"{bundle.path}: the checkpoint's {name} is not in the bundle. Rebuild it with bei-compile."
            )
        _copy(bundle.path / stored, folder / name)


def source_json(bundle: Bundle, name: str) -> dict[str, Any] | None:
    """One of the checkpoint's JSON files as it came; None where there is none or it holds no object."""
    stored = f"{SOURCE_FOLDER}/{name}"
    if stored not in bundle.manifest.files:
        return None
    value = msgspec.json.decode((bundle.path / stored).read_bytes())
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: object) -> None:
    """Indented, in UTF-8."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def portable_tokenizer(bundle: Bundle) -> tokenizers.Tokenizer:
    """The bundle's tokenizer with everything the runtime does around it inside: truncation to the bundle's
    longest text, padding at the right. Raises BundleError when it gives other ids than at build time."""
    spec, limits = bundle.manifest.tokenizer, bundle.manifest.limits
    library = tokenizers.Tokenizer.from_file(str(bundle.path / spec.file))
    Tokenizer(library, spec).check_golden(str(bundle.path))
    library.enable_truncation(max_length=limits.max_length)
    library.enable_padding(pad_id=spec.pad_id, pad_token=pad_token(library, spec))
    return library


def pad_token(library: tokenizers.Tokenizer, spec: TokenizerSpec) -> str:
    """The word of the padding id; models without one get a name that is never looked up."""
    return library.id_to_token(spec.pad_id) or "[PAD]"


def _copy(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, to)
