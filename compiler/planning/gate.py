"""What a build is refused for before it starts: a card, a host or a disk that is too small."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.filesize import decimal

from bei.cards import Card
from bei.compiler.planning.memory import HOST_BASE, HOST_FACTOR, MemoryPlan
from bei.errors import EngineError


def check_card(plans: Sequence[MemoryPlan], card: Card) -> None:
    """Every engine that runs on the card must fit it, and one must run on it. Raises EngineError."""
    served = [plan for plan in plans if card.name in plan.budgets]
    if not served:
        raise EngineError(
            f"card {card.name}: none of the targets runs on SM{card.sm}. Ask for one that does, such as "
            f"cuda-sm{card.sm} or tensorrt-sm{card.sm}."
        )
    for plan in served:
        if plan.device <= card.memory:
            continue
        budget = plan.budgets[card.name]
        instead = (
            f"The largest --max-batch-tokens that fits is {budget}."
            if budget is not None
            else "Not even one text of the longest length fits: lower --max-length, or take a larger card."
        )
        raise EngineError(
            f"{plan.target}: needs {decimal(plan.device)} on {card.name}, which has {decimal(card.memory)} "
            f"(weights {decimal(plan.weights)}, activation {decimal(plan.activation)} for "
            f"{max(p.max_tokens for p in plan.profiles)} tokens a call). {instead}"
        )


def check_host(plans: Sequence[MemoryPlan], free: int | None) -> None:
    """The build must fit ``free`` bytes of memory (None: not known). Raises EngineError."""
    for plan in plans:
        if free is not None and plan.host > free:
            raise EngineError(
                f"{plan.target}: building needs about {decimal(plan.host)} of memory ({HOST_FACTOR} times a plan of "
                f"{decimal(plan.disk)}, and {decimal(HOST_BASE)}), and {decimal(free)} are free here. Build on a "
                "machine with more memory, or leave this target out."
            )


def check_disk(plans: Sequence[MemoryPlan], sources: int, where: Path) -> None:
    """``where`` must have room for the checkpoint's ``sources`` bytes, every plan, and FP16 weights while one is built.
    Raises EngineError."""
    built, scratch = sum(plan.disk for plan in plans), max((plan.scratch for plan in plans), default=0)
    needed, free = sources + built + scratch, shutil.disk_usage(where).free
    if needed > free:
        raise EngineError(
            f"{where}: the build needs about {decimal(needed)} of disk (weights {decimal(sources)}, plans "
            f"{decimal(built)}, FP16 weights while it runs {decimal(scratch)}), and {decimal(free)} are free. "
            "Free some space, or give another --out."
        )


def free_memory() -> int | None:
    """Bytes that a new process can use, within the control group's limit; None where the system does not say."""
    found = [size for size in (_available(), _group_limit()) if size is not None]
    return min(found) if found else None


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return sizes[0] if sizes else None


def _group_limit() -> int | None:
    """Of control groups' second version, less what is in use and cannot be dropped."""
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text().strip()
        used = int((root / "memory.current").read_text())
        facts = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) - used + int(facts.get("inactive_file", 0))
