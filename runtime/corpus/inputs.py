"""From what the user names to files in a fixed order: paths, URIs, globs, folders, datasets saved to disk."""

import fnmatch
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal

import msgspec
from pyarrow import fs

from bei.errors import InputError
from bei.runtime.corpus.lines import COMPRESSED, CsvReader, json_reader, text_reader
from bei.runtime.corpus.reader import Reader, Wanted
from bei.runtime.corpus.rows import IdType
from bei.runtime.corpus.storage import Place, locate, reading
from bei.runtime.corpus.tables import ArrowReader, ParquetReader

Format = Literal["text", "jsonl", "csv", "tsv", "parquet", "arrow"]

SUFFIXES: dict[str, Format] = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
LINES: tuple[Format, ...] = ("text", "jsonl", "csv", "tsv")
"""Formats that may be compressed as a whole."""

DATASET, DATASETS = "state.json", "dataset_dict.json"
"""What marks a folder written by `Dataset.save_to_disk` and `DatasetDict.save_to_disk`."""

SAMPLE = 1 << 16
"""Bytes at a file's beginning and end that its fingerprint covers."""


class InputFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``modified`` in nanoseconds, None where the storage does not tell; ``sample`` the SHA-256 of the first and last
    64 KiB."""

    uri: str
    format: Format
    size: int
    modified: int | None
    sample: str


def find_inputs(names: Sequence[str], format: Format | None = None) -> tuple[InputFile, ...]:
    """All files in the order of ``names``, those of a folder or glob sorted by path. ``format`` overrides what names
    end in. Raises InputError."""
    found = [fingerprint(place, known) for name in names for place, known in _expand(name, format)]
    seen: set[str] = set()
    for file in found:
        if file.uri in seen:
            raise InputError(f"{file.uri}: given twice. Name it once.")
        seen.add(file.uri)
    return tuple(found)


def fingerprint(place: Place, format: Format) -> InputFile:
    """What tells a changed file from the one it was."""
    info = place.info()
    digest = hashlib.sha256()
    with reading(place), place.filesystem.open_input_file(place.path) as file:
        digest.update(file.read(SAMPLE))
        file.seek(max(0, info.size - SAMPLE))
        digest.update(file.read(SAMPLE))
    return InputFile(
        uri=place.uri,
        format=format,
        size=info.size,
        modified=info.mtime_ns,
        sample=digest.hexdigest(),
    )


def open_reader(file: InputFile, wanted: Wanted) -> Reader:
    """The file's reader, giving the ``wanted`` columns. Raises InputError."""
    place = locate(file.uri)
    if file.format == "parquet":
        return ParquetReader(place=place, wanted=wanted)
    if file.format == "arrow":
        return ArrowReader(place=place, wanted=wanted)
    if file.format == "text":
        return text_reader(place, wanted)
    if file.format == "jsonl":
        return json_reader(place, wanted)
    return CsvReader(place=place, wanted=wanted, delimiter="\t" if file.format == "tsv" else ",")


def check_inputs(files: Sequence[InputFile], wanted: Wanted) -> IdType | None:
    """The type of the ids, None without an id column: integers where every file has integers, else text.

    Raises InputError where a file cannot hold what is wanted.
    """
    kinds = {open_reader(file, wanted).check() for file in files}
    if wanted.id_column is None:
        return None
    return "int64" if kinds <= {"int64", None} else "string"


def _expand(name: str, format: Format | None) -> list[tuple[Place, Format]]:
    """Files that one argument names, and their formats."""
    place = locate(name)
    kind = place.info().type
    if kind == fs.FileType.NotFound and set("*?[") & set(name):
        matches = list(_matches(place))
    elif kind == fs.FileType.NotFound:
        raise InputError(f"{name}: no such file or folder.")
    else:
        matches = [place]
    found = [file for match in matches for file in _files(match)]
    if format is not None:
        usable = [(file, format) for file in found]
    elif kind == fs.FileType.File:
        usable = [(place, _known(place))]
    else:
        usable = [(file, known) for file in found if (known := _format(file.path))]
    if not usable:
        raise InputError(f"{name}: no input files there (need names ending in {', '.join(SUFFIXES)}).")
    return usable


def _matches(pattern: Place) -> Iterator[Place]:
    """Paths that match a glob: ``*`` and ``?`` within a name, ``**`` for any folders."""
    root, *parts = pattern.path.split("/")
    yield from _walk(pattern.at(root or "/"), parts)


def _walk(place: Place, parts: Sequence[str]) -> Iterator[Place]:
    if not parts:
        yield place
        return
    head, *rest = parts
    if head == "**":
        yield from _walk(place, rest)
        for info in place.list():
            if info.type == fs.FileType.Directory and not _hidden(info.base_name):
                yield from _walk(place.at(info.path), parts)
    elif set("*?[") & set(head):
        for info in place.list():
            if fnmatch.fnmatchcase(info.base_name, head) and _hidden(head) >= _hidden(info.base_name):
                yield from _walk(place.at(info.path), rest)
    elif place.child(head).info().type != fs.FileType.NotFound:
        yield from _walk(place.child(head), rest)


def _files(place: Place) -> Iterator[Place]:
    """The place itself if it is a file; else what the folder holds, hidden names left out."""
    if place.info().type == fs.FileType.File:
        yield place
        return
    entries = place.list()
    names = {info.base_name for info in entries}
    if DATASETS in names:
        splits = [info.base_name for info in entries if info.type == fs.FileType.Directory]
        raise InputError(f"{place.uri}: a dataset with several splits. Name one: {', '.join(splits)}.")
    if DATASET in names:
        yield from (place.child(name) for name in _dataset_files(place))
        return
    for info in entries:
        if not _hidden(info.base_name):
            child = place.at(info.path)
            if info.type == fs.FileType.Directory:
                yield from _files(child)
            else:
                yield child


def _dataset_files(place: Place) -> list[str]:
    """A saved dataset's files in its own order."""
    try:
        state: Any = msgspec.json.decode(place.child(DATASET).read())
        return [str(entry["filename"]) for entry in state["_data_files"]]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise InputError(f"{place.child(DATASET).uri}: not what `datasets` writes ({error!r}).") from None


def _known(place: Place) -> Format:
    known = _format(place.path)
    if known is None:
        raise InputError(
            f"{place.uri}: unknown kind of file (known: {', '.join(SUFFIXES)}). Say which with --format."
        )
    return known


def _format(path: str) -> Format | None:
    """By the name's ending; a compressed file by the one before."""
    name = PurePosixPath(path)
    packed = name.suffix in COMPRESSED
    found = SUFFIXES.get((name.with_suffix("") if packed else name).suffix.lower())
    return None if packed and found not in LINES else found


def _hidden(name: str) -> bool:
    return name.startswith((".", "_"))
