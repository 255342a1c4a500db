"""The environment variables of Flower and Ray in a simulation."""

import json
import math
import os
import sys
from pathlib import Path

from simulations.engine.processes import KEPT_MEMORY, MARKER_VARIABLE
from simulations.engine.ray_cluster import ADDRESS, RayCluster

_OBJECT_STORE_BYTES = 500_000_000


def flower_environment(
    base: Path, home: Path, marker: str, cpus_per_site: float, cluster: RayCluster | None
) -> dict[str, str]:
    """This process's environment with the variables of a simulation.

    They keep the simulation apart from other ones, switch telemetry off, and set the threads.

    Args:
        base: Folder of Ray's temporary files.
        home: Flower's home folder, with the connection to its SuperLink.
        marker: Value by which all processes of the run are found.
        cpus_per_site: CPU cores of one site, which set its number of threads.
        cluster: Ray cluster on which the sites work; None for a Ray of this run's own.
    """
    environment = dict(os.environ)
    # Both would change the Ray of this run.
    for name in (ADDRESS, "RAY_OVERRIDE_RESOURCES"):
        environment.pop(name, None)
    programs = str(Path(sys.executable).parent)
    of_sites = _of_sites(home, marker, cpus_per_site)
    return (
        environment
        | of_sites
        | {
            "PATH": os.pathsep.join((programs, environment.get("PATH", os.defpath))),
            "PYTHONUNBUFFERED": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "COLUMNS": "300",  # otherwise Flower breaks messages and paths at 80 characters
        }
        | (_of_own_ray(base) if cluster is None else _of_cluster(cluster, of_sites))
    )


def _of_sites(home: Path, marker: str, cpus_per_site: float) -> dict[str, str]:
    """Variables of the processes of server and sites, on any machine."""
    threads = str(max(1, math.floor(cpus_per_site)))
    return {
        MARKER_VARIABLE: marker,
        "SPT_NOENV": "1",  # otherwise Ray's process titles overwrite the marker
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a site's own settings choose its device
        **KEPT_MEMORY,
        # Threads that wait actively block each other on a busy core.
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }


def _of_own_ray(base: Path) -> dict[str, str]:
    """Variables of a Ray that ends with the run."""
    return {
        "RAY_TMPDIR": str(base),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(_OBJECT_STORE_BYTES),
        "RAY_worker_niceness": "0",
        # Workers that Ray starts in advance lack Flower's environment and are not used.
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_metrics_collection": "0",
    }


def _of_cluster(cluster: RayCluster, of_sites: dict[str, str]) -> dict[str, str]:
    """Variables for a cluster, whose nodes have an environment of their own."""
    job = {"runtime_env": {"env_vars": of_sites}}
    return {
        ADDRESS: cluster.address,
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job),
        "RAY_DEDUP_LOGS": "0",
    }
