"""An existing Ray cluster on which a simulation's sites work, and what its nodes must have.

`RAY_ADDRESS` names it, as for every program that uses Ray. The cluster is its owner's: nothing here
starts or stops it. A process of its own asks the nodes (`simulations.engine.cluster_probe`), since
Ray changes a process that joins it.
"""

import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.parent import tied

ADDRESS = "RAY_ADDRESS"

_PACKAGES = ("flwr", "torch")
"""Packages that must have the same version everywhere. Ray compares itself and Python."""
_CONNECT_LIMIT = 5.0  # seconds


@dataclass(frozen=True)
class RayCluster:
    """A cluster that answered.

    Attributes:
        address: Host and port.
        cpus: Ray's CPUs of each node.
        cpus_per_actor: Ray's CPUs for each of Flower's actors, in which sites work.
    """

    address: str
    cpus: tuple[int, ...]
    cpus_per_actor: int

    @property
    def actors(self) -> int:
        """How many actors Flower starts, which is how many sites work at the same time."""
        return _actors(self.cpus, self.cpus_per_actor)


def find_cluster(
    run_folder: Path, paths: Sequence[Path], num_sites: int, cpus_per_site: float
) -> RayCluster | None:
    """The cluster that `RAY_ADDRESS` names; None where it names none or says `local`.

    Args:
        run_folder: Which all nodes must share; it need not exist yet.
        paths: Files and folders that all nodes must have.
        num_sites: Number of simulated sites.
        cpus_per_site: CPU cores of a site, rounded up to Ray's whole CPUs.

    Raises:
        UserError: if the cluster does not answer, has other versions or too few free CPUs, or if a
            node lacks a path.
    """
    given = os.environ.get(ADDRESS, "")
    if given in ("", "local"):
        return None
    if given != "auto":
        _connect(given)
    place = run_folder.resolve()
    base = next(folder for folder in (place, *place.parents) if folder.is_dir())
    # Every machine may have a folder of this name; a new one in it shows that it is the same.
    with tempfile.TemporaryDirectory(prefix=".fedmed-", dir=base) as new:
        found = _ask(given, [new, *map(str, paths)])
    for node in found["nodes"]:
        _check_node(node, given, base, new)
    cpus = tuple(int(node["cpus"]) for node in found["nodes"])
    if found["free_cpus"] < sum(cpus):
        raise UserError(
            f"{ADDRESS}={given}: {found['free_cpus']:g} of {sum(cpus)} CPUs are free, "
            "and a run takes the whole cluster"
        )
    each = _cpus_per_actor(cpus, num_sites, cpus_per_site)
    if each is None:
        raise UserError(
            f"{ADDRESS}={given}: no node has the {math.ceil(cpus_per_site)} CPUs of "
            f"federation.cpus_per_site={cpus_per_site:g}; the largest has {max(cpus)}"
        )
    return RayCluster(found["address"], cpus, each)


def _connect(address: str) -> None:
    """Refuses an address where nothing listens, for which Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in address:
        raise UserError(
            f"{ADDRESS}={address} must be HOST:PORT of a cluster that this machine is a node of, "
            "auto, or local"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_LIMIT).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"{ADDRESS}={address} cannot be reached ({error})") from None


def _ask(address: str, paths: Sequence[str]) -> dict[str, Any]:
    """Asks the nodes by `simulations.engine.cluster_probe`."""
    question = json.dumps({"address": address, "paths": list(paths), "packages": _PACKAGES})
    command = tied([sys.executable, "-m", "simulations.engine.cluster_probe", question])
    # Else Ray takes the variable in place of the address.
    environment = {key: value for key, value in os.environ.items() if key != ADDRESS}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise UserError(
            f"{ADDRESS}={address}: no Ray cluster answered (exit {done.returncode})"
        ) from None
    if "error" in answer:
        raise UserError(f"{ADDRESS}={address}: {answer['error']}")
    return answer


def _check_node(node: dict[str, Any], address: str, base: Path, new: str) -> None:
    where = f"{ADDRESS}={address}: node {node['name']}"
    if node["missing"]:
        if new in node["missing"]:
            raise UserError(f"{where} does not share {base}, where the run's folder is to be")
        raise UserError(f"{where} does not have {', '.join(node['missing'])}")
    for package, other in node["versions"].items():
        if other != version(package):
            raise UserError(
                f"{where} has {package} {other or 'not'}, here it is {version(package)}"
            )


def _cpus_per_actor(cpus: Sequence[int], num_sites: int, cpus_per_site: float) -> int | None:
    """The most CPUs for an actor with which all sites still work at once, or as many as can.

    Flower starts as many actors as fit into the cluster, however few sites there are.
    """
    least = max(1, math.ceil(cpus_per_site))
    wanted = min(num_sites, _actors(cpus, least))
    fitting = [each for each in range(least, max(cpus) + 1) if _actors(cpus, each) >= wanted]
    return fitting[-1] if wanted else None


def _actors(cpus: Sequence[int], each: int) -> int:
    return sum(number // each for number in cpus)
