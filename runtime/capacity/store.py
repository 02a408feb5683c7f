"""Curves on disk: the file beside a bundle, files from other machines, and those that come with bei."""

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from bei.errors import InputError
from bei.manifest import Manifest
from bei.runtime.capacity.curve import EngineCurve, HostCosts, shape_of

SCHEMA_VERSION = 2
"""2 has calls of a rested engine, and of the server what it takes between calls: what version 1 promised was too much."""

KNOWN = "known.json"
"""Beside this module: what benchmarks/known_curves.py took from the committed results."""


class Curves(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At most one engine for each model, target and device; at most one host for each model's server and device."""

    schema_version: int = SCHEMA_VERSION
    engines: tuple[EngineCurve, ...] = ()
    hosts: tuple[HostCosts, ...] = ()

    def updated(self, engine: EngineCurve, host: HostCosts) -> "Curves":
        """With these in the place of older ones of the same device."""
        return Curves(
            engines=(*(one for one in self.engines if _key(one) != _key(engine)), engine),
            hosts=(*(one for one in self.hosts if one.device != host.device), host),
        )


def beside(bundle: Path) -> Path:
    """The file that `bei-plan --measure` writes: minilm.bundle has minilm.curves.json."""
    return bundle.with_name(f"{bundle.name.removesuffix('.bundle')}.curves.json")


def read_curves(file: Path) -> Curves:
    """Raises InputError for a file that is not there, or is something else."""
    try:
        return decode(file.read_bytes(), str(file))
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read ({error.strerror}). bei-plan --measure writes such files."
        ) from None


def write_curves(file: Path, curves: Curves) -> None:
    """Whole, or not at all. Raises InputError where it cannot be written."""
    data = msgspec.json.format(msgspec.json.encode(curves), indent=2) + b"\n"
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(
            f"{file}: cannot be written ({error.strerror}). Name another file with --curves."
        ) from None


def known_curves() -> Curves:
    """Measured by the project's own benchmarks."""
    return decode(files(__package__).joinpath(KNOWN).read_bytes(), KNOWN)


def decode(data: bytes, where: str) -> Curves:
    try:
        plain: Any = msgspec.json.decode(data)
        found = plain.get("schema_version") if isinstance(plain, dict) else None
        if found != SCHEMA_VERSION:
            raise InputError(
                f"{where}: schema version {found!r}, need {SCHEMA_VERSION}. Delete it, and measure again with bei-plan --measure."
            )
        return msgspec.convert(plain, Curves)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: holds no curves ({error}). bei-plan --measure writes them.") from None


def engines_for(manifest: Manifest, curves: Sequence[Curves]) -> list[EngineCurve]:
    """Curves of encoders of the bundle's shape; of several for one target and device the first."""
    shape = shape_of(manifest.encoder)
    found: dict[tuple[str, str], EngineCurve] = {}
    for one in (engine for some in curves for engine in some.engines):
        if one.shape == shape:
            found.setdefault((one.target, one.device), one)
    return list(found.values())


def host_for(engine: EngineCurve, curves: Sequence[Curves]) -> HostCosts | None:
    """Of the processor beside the engine; a CPU engine has no other. A GPU's may be any that was measured: the last."""
    hosts = [host for some in curves for host in some.hosts]
    own = [host for host in hosts if host.device == engine.host]
    usable = own or (hosts if engine.kind == "cuda" else [])
    return usable[-1] if usable else None


def _key(engine: EngineCurve) -> tuple[str, str, str]:
    return engine.model, engine.target, engine.device
