"""The CPU of this machine, and how many threads of it this process may use."""

import os
import platform
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


def processor(info: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = info.read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
