"""The cores and the memory that this process may use."""

import ctypes
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


def return_freed_memory() -> None:
    """Gives the system back the memory that this process has freed, where the C library can.

    glibc keeps the freed blocks of a round of training, hundreds of MB, while the process waits for
    the next one.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
