"""From an adapter's rows to the canonical weights, with every tensor accounted for.

A `Weight` is a window into the checkpoint's own file (or, for the few small derived ones, an array): engines read the
bytes where they lie.
"""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bei.adapters.base import Derived, Source, View
from bei.compiler.checkpoint.stored import DTYPES, WEIGHT_DTYPES, StoredTensor
from bei.errors import WeightMismatch

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """A canonical tensor. Stored: ``file``, ``offset``, ``dtype`` say where; derived: ``data`` (float32) holds it.

    The value is the stored one times ``scale``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    folder: Path | None = None
    file: str | None = None
    offset: int = 0
    scale: float = 1.0
    data: npt.NDArray[np.float32] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return int(np.prod(self.shape)) * DTYPES[self.dtype].itemsize

    def stored(self) -> npt.NDArray[Any]:
        """The stored values without ``scale``: a read-only map of the file, or the derived array."""
        if self.data is not None:
            return self.data
        assert self.folder is not None and self.file is not None
        return np.memmap(self.folder / self.file, DTYPES[self.dtype], "r", self.offset, self.shape)

    def float32(self) -> npt.NDArray[np.float32]:
        """The value in float32 (a copy where the stored dtype differs or a scale applies)."""
        value = self.stored().astype(np.float32, copy=False)
        return value if self.scale == 1.0 else value * np.float32(self.scale)

    def rows(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The value's rows at ``index`` [...], a copy in float32 [..., *shape[1:]]; nothing else is read."""
        return self.stored()[index].astype(np.float32) * np.float32(self.scale)


Weights = Mapping[str, Weight]
"""Canonical name → Weight."""


def find_prefix(prefixes: Sequence[str], probe: str, tensors: Iterable[str]) -> str:
    """The first prefix under which ``probe`` is stored; "" when none is (the missing tensor is reported later)."""
    names = set(tensors)
    return next((prefix for prefix in prefixes if prefix + probe in names), "")


def strip_prefix(prefix: str, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Names without ``prefix``; those that lack it keep theirs."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def resolve(
    subject: str,
    rows: Iterable[tuple[str, Source]],
    tensors: Mapping[str, StoredTensor],
    folder: Path,
    ignore: Sequence[str] = (),
) -> dict[str, Weight]:
    """Canonical name → Weight for every row.

    ``tensors`` are keyed by the names the rows use. Raises one WeightMismatch that names what is missing, what is
    stored but neither read nor ignored, and rows listed twice.
    """
    weights: dict[str, Weight] = {}
    missing: list[str] = []
    read: set[str] = set()
    twice: list[str] = []
    for name, source in rows:
        if name in weights:
            twice.append(name)
        source = _stored(source, tensors)
        needed = source.names if isinstance(source, Derived) else (source.name,)
        read.update(needed)
        absent = [n for n in needed if n not in tensors]
        if absent:
            missing.extend(absent)
            continue
        weights[name] = _weight(subject, name, source, tensors, folder)
    unread = [n for n in tensors if n not in read and not any(fnmatch.fnmatchcase(n, p) for p in ignore)]
    problems = [
        _listed("missing", missing),
        _listed("unread ", unread),
        _listed("listed twice", twice),
    ]
    if any(problems):
        raise WeightMismatch(
            f"{subject}: checkpoint does not match the adapter\n"
            + "".join(problems)
            + "  Add a row in weights(), or list the tensor in `ignore` if it does not affect the result."
        )
    return weights


def check_shapes(subject: str, weights: Mapping[str, Weight], needed: Shapes, optional: Shapes) -> None:
    """Every needed weight is there with its shape, and nothing is there that the encoder does not use."""
    problems = []
    for name, shape in needed.items():
        if name not in weights:
            problems.append(f"  {name}: not provided, need shape {shape}\n")
        elif weights[name].shape != shape:
            problems.append(f"  {name}: got shape {weights[name].shape}, need {shape}\n")
    for name, weight in weights.items():
        if name in needed:
            continue
        if name not in optional:
            problems.append(f"  {name}: provided, but the encoder does not use it\n")
        elif weight.shape != optional[name]:
            problems.append(f"  {name}: got shape {weight.shape}, need {optional[name]}\n")
    if problems:
        more = f"  … and {len(problems) - 5} more\n" if len(problems) > 5 else ""
        raise WeightMismatch(
            f"{subject}: weights do not fit config.json\n"
            + "".join(problems[:5])
            + more
            + "  The checkpoint is damaged, or its config.json belongs to another model."
        )


def check_finite(subject: str, weights: Mapping[str, Weight]) -> None:
    """Raise WeightMismatch naming every weight that holds NaN or infinity; reads each stored byte once."""
    bad = [name for name, weight in weights.items() if not _finite(weight.stored())]
    if bad:
        raise WeightMismatch(
            f"{subject}: NaN or infinity in the weights\n{_listed('not finite', bad)}"
            "  The checkpoint is damaged; download it again."
        )


def _finite(values: npt.NDArray[Any], chunk: int = 1 << 22) -> bool:
    flat = values.reshape(-1)
    return all(
        bool(np.isfinite(flat[start : start + chunk]).all()) for start in range(0, flat.shape[0], chunk)
    )


def _stored(source: Source, tensors: Mapping[str, StoredTensor]) -> Source:
    """``source``, or its ``otherwise`` where only that is stored."""
    if isinstance(source, View) and source.otherwise and source.name not in tensors:
        return source.otherwise if source.otherwise.name in tensors else source
    return source


def _weight(
    subject: str, name: str, source: Source, tensors: Mapping[str, StoredTensor], folder: Path
) -> Weight:
    if isinstance(source, Derived):
        arrays = [tensors[n].array(folder).astype(np.float32) for n in source.names]
        data = np.ascontiguousarray(source.edit(*arrays), dtype=np.float32)
        return Weight(name=name, shape=data.shape, dtype="F32", data=data)
    tensor = tensors[source.name]
    if tensor.dtype not in WEIGHT_DTYPES:
        raise WeightMismatch(
            f"{subject}: {source.name} is stored as {tensor.dtype}, need one of {', '.join(WEIGHT_DTYPES)}. "
            "Use the repository's full-precision revision."
        )
    if not tensor.shape:
        raise WeightMismatch(
            f"{subject}: {source.name} is a single number, but {name} needs rows. The checkpoint is damaged."
        )
    start, stop = source.rows or (0, tensor.shape[0])
    if not 0 <= start < stop <= tensor.shape[0]:
        raise WeightMismatch(
            f"{subject}: {source.name} has {tensor.shape[0]} rows, but {name} needs rows {start} to {stop}. "
            "The checkpoint is damaged, or its config.json belongs to another model."
        )
    row = tensor.nbytes // tensor.shape[0]
    return Weight(
        name=name,
        shape=(stop - start, *tensor.shape[1:]),
        dtype=tensor.dtype,
        folder=folder,
        file=tensor.file,
        offset=tensor.offset + start * row,
        scale=source.scale,
    )


def _listed(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = ", …" if len(names) > 5 else ""
    return f"  {what} ({len(names)}): {', '.join(names[:5])}{more}\n"
