"""The environment variables of Flower and Ray in a simulation."""

import math
import os
import sys
from pathlib import Path

from simulations.engine.processes import KEPT_MEMORY, MARKER_VARIABLE

_OBJECT_STORE_BYTES = 500_000_000


def flower_environment(base: Path, home: Path, marker: str, cpus_per_site: float) -> dict[str, str]:
    """This process's environment with the variables of a simulation.

    They keep the simulation apart from other ones, switch telemetry off, and set the threads.

    Args:
        base: Folder of Ray's temporary files.
        home: Flower's home folder, with the connection to its SuperLink.
        marker: Value by which all processes of the run are found.
        cpus_per_site: CPU cores of one site, which set its number of threads.
    """
    environment = dict(os.environ)
    # Both would change the Ray of this run.
    for name in ("RAY_ADDRESS", "RAY_OVERRIDE_RESOURCES"):
        environment.pop(name, None)
    threads = str(max(1, math.floor(cpus_per_site)))
    programs = str(Path(sys.executable).parent)
    environment |= {
        MARKER_VARIABLE: marker,
        "SPT_NOENV": "1",  # otherwise Ray's process titles overwrite the marker
        "PATH": os.pathsep.join((programs, environment.get("PATH", os.defpath))),
        "PYTHONUNBUFFERED": "1",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "COLUMNS": "300",  # otherwise Flower breaks messages and paths at 80 characters
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "RAY_TMPDIR": str(base),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(_OBJECT_STORE_BYTES),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a site's own settings choose its device
        "RAY_worker_niceness": "0",
        **KEPT_MEMORY,
        # Workers that Ray starts in advance lack Flower's environment and are not used.
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_metrics_collection": "0",
        # Threads that wait actively block each other on a busy core.
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
    return environment
