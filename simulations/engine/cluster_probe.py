"""Asks each node of a Ray cluster for its CPUs, paths and versions, in a process of its own.

The question is the only argument, and the answer is the last line of the output, both in JSON.
"""

import json
import logging
import signal
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_ANSWER_LIMIT = 60  # seconds; a port that is not Ray's would be asked for hours
_FREE_LIMIT = 10.0  # seconds until Ray counts the CPUs of a run that has just ended as free


def look(name: str, paths: list[str], packages: list[str]) -> dict[str, Any]:
    """Finds missing paths, and the versions of packages, on the node that runs this."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = ""
    missing = [path for path in paths if not Path(path).exists()]
    return {"name": name, "missing": missing, "versions": versions}


def ask(address: str, paths: list[str], packages: list[str]) -> dict[str, Any]:
    """The cluster's address, its free CPUs, and the answer of each node."""
    ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    task = ray.remote(num_cpus=0, max_retries=0)(look)
    answers = []
    for node in nodes:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        answers.append(task.options(scheduling_strategy=here).remote(name, paths, packages))
    found = [
        {**answer, "cpus": node["Resources"].get("CPU", 0)}
        for node, answer in zip(nodes, ray.get(answers), strict=True)
    ]
    total, deadline = sum(node["cpus"] for node in found), time.monotonic() + _FREE_LIMIT
    while (free := ray.available_resources().get("CPU", 0)) < total:
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    address = ray.get_runtime_context().gcs_address
    return {"address": address, "free_cpus": free, "nodes": found}


def main() -> None:
    """Prints the answer, or the first cause of an error."""
    signal.alarm(_ANSWER_LIMIT)  # ends the process, in Ray's own code, too
    try:
        answer = ask(**json.loads(sys.argv[1]))
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        answer = {"error": " ".join(str(cause).split()) or type(cause).__name__}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
