"""Where every tensor of a checkpoint lies: a strict reader of safetensors headers.

Format: 8 bytes little-endian header length, the header (a JSON object: name → dtype, shape, data_offsets counted from
the header's end, and an optional `__metadata__`), then the data without holes or overlaps
(https://github.com/huggingface/safetensors#format). Nothing of the data is read here.
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from bei.compiler.checkpoint.files import is_inside, read_object
from bei.compiler.checkpoint.stored import DTYPES, StoredTensor
from bei.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library itself."""
MAX_RANK = 8
"""Axes of a tensor; no weight has that many, and NumPy has a limit."""


def weight_files(folder: Path) -> tuple[str, ...]:
    """The safetensors files of the checkpoint's own module: one file, or the shards that its index names.

    Raises CheckpointError when there are none, or when the index is not usable.
    """
    if os.path.lexists(folder / SINGLE):
        return (SINGLE,)
    if os.path.lexists(folder / INDEX):
        return shards(_weight_map(folder))
    raise CheckpointError(no_weights(str(folder), (path.name for path in folder.iterdir())))


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a single or sharded checkpoint; raises CheckpointError naming the file that is wrong."""
    tensors: dict[str, StoredTensor] = {}
    files = weight_files(folder)
    for file in files:
        found = read_header(folder, file)
        for name in tensors.keys() & found.keys():
            raise CheckpointError(
                f"{file}: tensor {name!r} is also stored in {tensors[name].file}. "
                "A tensor must be in one shard; download the repository again."
            )
        tensors.update(found)
    if files != (SINGLE,):
        _check_listed(_weight_map(folder), tensors)
    return tensors


def read_header(folder: Path, file: str) -> dict[str, StoredTensor]:
    """The tensors of one file, ``file`` being relative to ``folder`` (posix); raises CheckpointError."""
    header, start, size = _load(folder / file, file)
    _check_metadata(file, header.pop("__metadata__", None))
    tensors = {name: _tensor(file, name, entry, start) for name, entry in header.items()}
    _check_layout(file, tensors.values(), start, size)
    return tensors


def shards(weight_map: Mapping[str, str]) -> tuple[str, ...]:
    """The files an index names, in order; raises CheckpointError for a name that is not a plain file name."""
    names = sorted(set(weight_map.values()))
    for name in names:
        if "/" in name or not is_inside(name) or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{INDEX}: {name!r} is not the name of a safetensors file beside the index. "
                "Such a checkpoint is not trusted; take it from its publisher again."
            )
    return tuple(names)


def no_weights(subject: str, names: Iterable[str]) -> str:
    """The message for a checkpoint without safetensors, given the file names that it does have."""
    other = sorted(
        n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf"))
    )
    if not other:
        return f"{subject}: no weights. Need {SINGLE}, or {INDEX} and its shards."
    return (
        f"{subject}: no {SINGLE}, only {', '.join(other[:3])}. Files that can carry code are never loaded. "
        "Convert once, in an environment with torch and transformers:\n"
        "  python -c \"from transformers import AutoModel; AutoModel.from_pretrained('REPO').save_pretrained('OUT')\"\n"
        "then copy the other files beside it; or use a revision that has safetensors "
        "(on the Hub often a pull request by SFconvertbot: --revision refs/pr/N)."
    )


def _weight_map(folder: Path) -> dict[str, str]:
    found = read_object(folder, INDEX).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(v, str) for v in found.values()):
        raise CheckpointError(
            f"{INDEX}: weight_map must be a non-empty object of tensor name to file name. Download it again."
        )
    return found


def _check_listed(weight_map: Mapping[str, str], tensors: Mapping[str, StoredTensor]) -> None:
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file != file:
            raise CheckpointError(
                f"{file}: tensor {name!r} is not in it, although {INDEX} says so. Download the repository again."
            )


def _load(path: Path, file: str) -> tuple[dict[str, Any], int, int]:
    """The header, the byte where the data starts, and the file's size."""
    try:
        with path.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            length = _header_length(file, handle.read(8), size)
            raw = handle.read(length)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: missing in the checkpoint. Download the repository again.") from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}).") from None
    return _parse(file, raw), 8 + length, size


def _header_length(file: str, first: bytes, size: int) -> int:
    if len(first) < 8:
        _damaged(file, f"{size} bytes long, too short for a safetensors file")
    (length,) = struct.unpack("<Q", first)
    if not 2 <= length <= min(size - 8, MAX_HEADER):
        _damaged(
            file,
            f"header length {length} in a file of {size} bytes (a download cut short, or no safetensors)",
        )
    return int(length)


def _parse(file: str, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name occurs twice")
        return found

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        _damaged(file, f"its header is not valid JSON ({error})")
    if not isinstance(header, dict):
        _damaged(file, "its header is not a JSON object")
    return header


def _check_metadata(file: str, metadata: object) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _damaged(file, "its __metadata__ is not an object of strings")


def _tensor(file: str, name: str, entry: object, start: int) -> StoredTensor:
    if not isinstance(entry, dict):
        _damaged(file, f"the entry of {name!r} is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{file}: {name!r} is stored as {dtype!r}, need one of {', '.join(DTYPES)}. "
            "Use the repository's full-precision revision."
        )
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(_is_count(size) for size in shape):
        _damaged(file, f"{name!r} has the shape {shape!r}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        _damaged(file, f"{name!r} has the data_offsets {offsets!r}")
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != nbytes:
        _damaged(file, f"{name!r} lies at {offsets!r}, but {dtype} {shape!r} takes {nbytes} bytes")
    return StoredTensor(
        name=name, file=file, dtype=dtype, shape=tuple(shape), offset=start + offsets[0], nbytes=nbytes
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_layout(file: str, tensors: Iterable[StoredTensor], start: int, size: int) -> None:
    """The data is tensor after tensor, from the header's end to the file's end."""
    end = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            what = "overlaps the one before" if tensor.offset < end else "leaves a hole before it"
            _damaged(file, f"{tensor.name!r} starts at byte {tensor.offset}, need {end}: it {what}")
        end += tensor.nbytes
    if end != size:
        _damaged(file, f"its tensors end at byte {end}, but the file has {size} (a download cut short?)")


def _damaged(file: str, what: str) -> NoReturn:
    raise CheckpointError(f"{file}: {what}. The file is damaged; download it again.")
