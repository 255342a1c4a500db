"""The memory of a process."""

import os
import subprocess
import sys

from mediffusion_core.common.machine import available_cores, available_memory
from simulations.engine.processes import KEPT_MEMORY

FREED = """
import os
from pathlib import Path
import numpy as np
from mediffusion_core.common.machine import return_freed_memory

def megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

kept = []
for _ in range(200):
    freed = np.ones(1 << 17)  # 1 MB
    kept.append((freed, np.ones(16)))  # keeps the heap from ending in a freed block
before = megabytes()
kept = [small for _, small in kept]
del freed
held = megabytes()
return_freed_memory()
print(before - held, held - megabytes())
"""


def test_freed_memory_is_returned_where_a_process_keeps_it() -> None:
    environment = {**os.environ, **KEPT_MEMORY}
    ran = subprocess.run(
        [sys.executable, "-c", FREED], env=environment, check=True, capture_output=True, text=True
    )
    without, returned = map(float, ran.stdout.split())
    assert without < 20, "the process did not keep what it freed, so this test shows nothing"
    assert returned > 150


def test_a_process_has_cores_and_memory() -> None:
    assert available_cores() >= 1
    assert available_memory() > 1e6
