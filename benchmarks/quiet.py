"""Runs during which nobody else used the machine."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

DISTURBED = 0.05
"""Share of a core that other processes may use."""

TRIES = 10
TICKS = os.sysconf("SC_CLK_TCK")
T = TypeVar("T")


def quiet(run: Callable[[], T], *servers: int) -> T:
    """What a run gives that no other process disturbed: other than this one, its children that have ended by then, and the
    ``servers``, by their ids. Raises SystemExit when there is none."""
    for _ in range(TRIES):
        began, everybody, ours = os.times().elapsed, _everybody(), _ours(servers)
        found = run()
        seconds = os.times().elapsed - began
        others = _everybody() - everybody - (_ours(servers) - ours)
        if others <= DISTURBED * seconds:
            return found
        print(f"others used {others:.1f} s of CPU within {seconds:.1f} s: once more", file=sys.stderr)
    raise SystemExit(f"{TRIES} runs, and in each somebody else used the machine")


def _everybody() -> float:
    """CPU seconds of the machine, those that its host took from it included."""
    user, nice, system, _, _, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + soft + steal) / TICKS


def _ours(servers: tuple[int, ...]) -> float:
    spent = sum(os.times()[:4])
    for server in servers:
        user, system = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[11:13]
        spent += (int(user) + int(system)) / TICKS
    return spent
