"""GPUs that people rent and buy, by name: what `bei-compile --plan` and `bei-plan` look at.

Memory is counted as it is sold, in 10^9 bytes; the driver shows a little more of it, and keeps a little for itself. Prices
are assumptions: on demand, in US dollars, from public price lists of autumn 2026 (RunPod, Lambda, OpenRelay,
Paperspace); `bei-plan --price` says what is really paid.
"""

import difflib
import re
from dataclasses import dataclass

from bei.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """``memory`` in bytes; ``hourly`` the assumed price of an hour, None where nothing is assumed."""

    name: str
    sm: int
    memory: int
    hourly: float | None = None


CARDS: tuple[Card, ...] = (
    Card(name="L4", sm=89, memory=24 * 10**9),
    Card(name="A10G", sm=86, memory=24 * 10**9),
    Card(name="A100-40GB", sm=80, memory=40 * 10**9, hourly=1.99),
    Card(name="A100-80GB", sm=80, memory=80 * 10**9, hourly=1.59),
    Card(name="H100", sm=90, memory=80 * 10**9, hourly=3.49),
    Card(name="H200", sm=90, memory=141 * 10**9, hourly=4.59),
    Card(name="RTX-4090", sm=89, memory=24 * 10**9, hourly=0.29),
)

CPU = "cpu"
"""The name under which a machine without a GPU is priced, by the core."""

CPU_CORE_HOURLY = 0.02


def assumed_price(name: str, cores: int) -> float | None:
    """Of an hour of that card, or of so many CPU cores; None where nothing is assumed."""
    if name == CPU:
        return CPU_CORE_HOURLY * cores
    return next((one.hourly for one in CARDS if one.name == name), None)


def card_of(device: str) -> str:
    """The name here of what the driver calls so ("NVIDIA A100-SXM4-40GB"); for a GPU that is not listed the driver's."""
    words = _words(device)
    return next((one.name for one in CARDS if _words(one.name) <= words), device)


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


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower()))
