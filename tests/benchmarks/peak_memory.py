"""How much memory a call takes."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path


def grown_by(run: Callable[[], object]) -> float:
    """MB that this process takes at the peak of a call, beyond what it had before."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory must not hide later allocations
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: see proc(5)
    before = _megabytes("VmRSS")
    run()
    return _megabytes("VmHWM") - before


def _megabytes(name: str) -> float:
    """One of this process' figures in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))
