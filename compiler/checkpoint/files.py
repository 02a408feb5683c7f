"""Reading a checkpoint's small files: JSON objects, and the licence from the model card."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from bei.errors import CheckpointError

CARD = "README.md"
CARD_BYTES = 1 << 18


def read_json(folder: Path, name: str) -> Any:
    """The parsed file; raises CheckpointError when it cannot be read or is not JSON."""
    try:
        return json.loads((folder / name).read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{name}: missing in {folder}. Download the repository again, or check the folder."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{name}: cannot be read in {folder} ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{name}: not valid JSON ({error}). The file is damaged; download it again."
        ) from None


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """`read_json` for a file that must hold a JSON object."""
    value = read_json(folder, name)
    if not isinstance(value, dict):
        raise CheckpointError(f"{name}: holds a {type(value).__name__}, need a JSON object.")
    return value


def read_optional(folder: Path, name: str) -> dict[str, Any]:
    """`read_object`, or an empty one where the file does not exist."""
    return read_object(folder, name) if (folder / name).exists() else {}


def is_inside(path: str) -> bool:
    """Whether a relative posix path from a checkpoint's file stays within the checkpoint's folder."""
    if "\\" in path or "\0" in path or ":" in path:
        return False
    pure = PurePosixPath(path)
    return not pure.is_absolute() and ".." not in pure.parts


def read_license(folder: Path) -> str | None:
    """The licence that the model card (README.md front matter) states; None where it states none.

    `license: other` is replaced by `license_name`. A card that cannot be parsed states none.
    """
    card = _front_matter(folder / CARD)
    stated = card.get("license")
    if stated == "other" and isinstance(card.get("license_name"), str):
        return str(card["license_name"])
    if isinstance(stated, list) and stated:
        return ", ".join(str(item) for item in stated)
    return stated if isinstance(stated, str) and stated else None


def _front_matter(card: Path) -> dict[str, Any]:
    try:
        with card.open(encoding="utf-8", errors="replace") as file:
            text = file.read(CARD_BYTES)
    except OSError:
        return {}
    opening, _, rest = text.partition("---")
    if opening.strip("\ufeff \r\n"):
        return {}
    block, closed, _ = rest.partition("\n---")
    if not closed:
        return {}
    try:
        value = yaml.safe_load(block)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
