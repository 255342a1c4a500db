"""Memory and file handles of a deployment whose rounds do not end: one JSON line a sample.

python tests/benchmarks/soak.py FOLDER [--minutes 60]

A SuperLink and three SuperNodes over TLS on this machine run rounds of the joint stage, each with
an evaluation. Every quarter of a minute the resident memory and the open files of their lasting
programs are read. The last line compares the medians of the last third of the time with those of
the middle one. It exits with 1 where memory grew by more than 5 %, a program has more files open,
or the run ended. Needs Linux. FOLDER must not exist.
"""

import argparse
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from conftest import FEW, TINY
from local_deployment import LocalDeployment

from configs.compose import flatten
from simulations.engine.processes import read_process

PAUSE, LASTING = 15.0, 60.0  # seconds
SITES = ("site-0", "site-1", "site-2")
ENDLESS = (
    "federation.autoencoder_rounds=1",
    "federation.num_rounds=100000",
    "evaluation.every=1",
    "evaluation.num_samples=16",
)
GROWTH = 1.05
Sample = dict[str, tuple[float, int]]
"""By program: resident memory in MB, open files."""


def samples(deployment: LocalDeployment, minutes: float) -> Iterator[Sample]:
    """One each quarter of a minute, of the programs that outlast a message."""
    end = time.monotonic() + 60 * minutes
    seen: dict[int, float] = {}
    while time.monotonic() < end:
        time.sleep(PAUSE)
        present = {
            pid: f"{owner}/{program}"
            for owner in (*SITES, "server")
            for pid, program in deployment.pair.processes(owner).items()
        }
        now = time.monotonic()
        seen = {pid: seen.get(pid, now) for pid in present}
        sample: Sample = {}
        for pid, name in present.items():
            # A site's ClientApp ends with its message.
            if now - seen[pid] >= LASTING and (read := _read(pid)) is not None:
                memory, files = sample.get(name, (0.0, 0))
                sample[name] = (memory + read[0], files + read[1])
        yield sample


def _read(pid: int) -> tuple[float, int] | None:
    """Resident memory in MB and open files; None for a process that has ended."""
    for line in read_process(pid, "status").decode().splitlines():
        if line.startswith("VmRSS:"):
            try:
                return int(line.split()[1]) / 1e3, len(list(Path(f"/proc/{pid}/fd").iterdir()))
            except FileNotFoundError:
                return None
    return None


def verdict(taken: list[Sample]) -> dict[str, dict[str, float]]:
    """By program that is in most samples, its growth from the middle third to the last one."""
    thirds = [taken[len(taken) // 3 : 2 * len(taken) // 3], taken[2 * len(taken) // 3 :]]
    medians: list[dict[str, tuple[float, float]]] = []
    for third in thirds:
        values: dict[str, list[tuple[float, int]]] = defaultdict(list)
        for sample in third:
            for name, one in sample.items():
                values[name].append(one)
        medians.append(
            {
                name: (median(one[0] for one in found), median(one[1] for one in found))
                for name, found in values.items()
                if 2 * len(found) > len(third)
            }
        )
    middle, last = medians
    return {
        name: {
            "memory_mb": round(last[name][0], 1),
            "memory_growth": round(last[name][0] / middle[name][0], 4),
            "files": last[name][1],
            "more_files": last[name][1] - middle[name][1],
        }
        for name in sorted(middle.keys() & last.keys())
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    deployment = LocalDeployment(options.folder, SITES)
    ended: list[str] = []

    def run() -> None:
        try:
            deployment.run(flatten([*TINY, *FEW, *ENDLESS]))
            ended.append("the run ended")
        except AssertionError as error:
            ended.append(str(error))

    taken: list[Sample] = []
    try:
        deployment.start()
        threading.Thread(target=run, daemon=True).start()
        for sample in samples(deployment, options.minutes):
            if ended:
                print(json.dumps({"ended": ended[0]}), flush=True)
                return 1
            taken.append(sample)
            print(json.dumps({"sample": len(taken), **sample}), flush=True)
        rounds = sum(len(folder.history()) for folder in deployment.run_folders())
    finally:
        deployment.pair.end()
    found = verdict(taken)
    print(json.dumps({"rounds": rounds, "verdict": found}), flush=True)
    grown = any(one["memory_growth"] > GROWTH or one["more_files"] > 0 for one in found.values())
    return int(grown or not found)


if __name__ == "__main__":
    sys.exit(main())
