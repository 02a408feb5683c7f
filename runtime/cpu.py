"""How many CPU threads this process may use."""

import os
from pathlib import Path

CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cpus(quota: Path = CGROUP_QUOTA) -> int:
    """CPUs of the affinity mask, further limited by a container's CPU quota (cgroup v2), at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit, period = quota.read_text().split()
        return max(1, min(cpus, -(-int(limit) // int(period))))
    except (OSError, ValueError):  # no cgroup v2, or "max": unlimited
        return max(1, cpus)
