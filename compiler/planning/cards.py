"""GPUs that people rent and buy, by name: what `bei-compile --plan` looks at.

Memory is counted as it is sold, in 10^9 bytes; the driver shows a little more of it, and keeps a little for itself.
"""

import difflib
from dataclasses import dataclass

from bei.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """``memory`` in bytes."""

    name: str
    sm: int
    memory: int


CARDS: tuple[Card, ...] = (
    Card(name="L4", sm=89, memory=24 * 10**9),
    Card(name="A10G", sm=86, memory=24 * 10**9),
    Card(name="A100-40GB", sm=80, memory=40 * 10**9),
    Card(name="A100-80GB", sm=80, memory=80 * 10**9),
    Card(name="H100", sm=90, memory=80 * 10**9),
    Card(name="H200", sm=90, memory=141 * 10**9),
    Card(name="RTX-4090", sm=89, memory=24 * 10**9),
)


def card(name: str) -> Card:
    """The card of that name, however it is spelt (``rtx 4090``). Raises InputError with the names there are."""
    known = {_plain(one.name): one for one in CARDS}
    if _plain(name) in known:
        return known[_plain(name)]
    close = difflib.get_close_matches(_plain(name), known, n=1)
    guess = f" Did you mean {known[close[0]].name!r}?" if close else ""
    raise InputError(
        f"card {name!r}: unknown.{guess} Known cards: {', '.join(one.name for one in CARDS)}. "
        "For another one compare its memory with the table of bei-compile --plan."
    )


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
