"""The cores and the memory that this process may use."""

import os
from pathlib import Path


def available_cores() -> int:
    """Number of cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def available_memory() -> float:
    """Available memory of the host, or the limit of the container if it is lower, in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = float(line.split()[1]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return available if text == "max" else min(available, float(text))
