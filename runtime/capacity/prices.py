"""What an hour of a device costs, as the user says: `--prices FILE` and `--price NAME=DOLLARS`, which wins."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bei.cards import CARDS, CPU
from bei.errors import InputError


def read_prices(given: Sequence[str], file: Path | None) -> dict[str, float]:
    """US dollars an hour by card; of "cpu", of one machine as it was measured. Raises InputError."""
    named = {} if file is None else _from_file(file)
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--price {text!r}: need NAME=DOLLARS, as in H200=3.80.")
        named[name] = value
    return {_card(name): _dollars(name, value) for name, value in named.items()}


def _from_file(file: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--prices {file}: cannot be read ({error}).") from None
    if not isinstance(found, dict):
        raise InputError(f"--prices {file}: need one line a card, as in H200: 3.80.")
    return {str(name): value for name, value in found.items()}


def _card(name: str) -> str:
    """As the catalogue spells it; other names, such as the driver's for an unlisted card, as they are."""
    return next(
        (known for known in (CPU, *(card.name for card in CARDS)) if known.lower() == name.lower()), name
    )


def _dollars(name: str, value: Any) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not (math.isfinite(found) and found >= 0):
        raise InputError(f"price of {name}: got {value!r}, need US dollars an hour.")
    return found
