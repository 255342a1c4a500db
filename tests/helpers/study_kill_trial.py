"""Kills a study of many runs with SIGKILL at random moments and compares its end.

    python tests/helpers/study_kill_trial.py FOLDER [--study paper] [--kills 10] [OVERRIDES]

A first study runs undisturbed. A second one, of the same overrides, is killed and started again
until it was killed that often, and then ends. No finished cell may be run again. `study paper`
must then have the first study's table and page, byte for byte. `study privacy` must have the same
lines, since private noise has no seed, and no audit above its promise. FOLDER keeps both.
"""

import argparse
import csv
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mediffusion_core.run_io.provenance import COMMIT_VARIABLE

PAPER = (
    "experiment=paper_base",
    "data.phantom.patients_per_site=[40,40,30]",
    "training.autoencoder.local_epochs=0.5",
    "training.joint.local_epochs=0.5",
    "federation.autoencoder_rounds=2",
    "federation.num_rounds=2",
    "evaluation.every=2",
    "evaluation.num_samples=16",
    "evaluation.sampling_steps=2",
    "evaluation.counterfactual.count=2",
)
PRIVACY = (
    "--epsilons=2,infinity",
    "--seeds=2",
    "--canaries=50",
    "experiment=phantom_private",
    "data.phantom.patients_per_site=[200,200]",
    "federation.num_rounds=6",
    "evaluation.every=6",
    "evaluation.num_samples=16",
    "evaluation.sampling_steps=2",
)
SMALL = {"paper": PAPER, "privacy": PRIVACY}
"""Options and overrides of each study, before the given ones."""


def study(
    name: str, folder: Path, overrides: Sequence[str], log: Path, seconds: float | None = None
) -> bool:
    """Starts or resumes a study; whether it ended before it was killed."""
    program = Path(sys.executable).with_name("fed-mediffusion")
    command = [program, "study", name, "--folder", folder, *SMALL[name], *overrides]
    # The page names the commit, which may change while this runs.
    environment = {**os.environ, COMMIT_VARIABLE: "trial"}
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return False
    assert status == 0, log.read_text()
    return True


def finished(folder: Path) -> dict[Path, int]:
    """When the figures of each finished cell were written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/figures.json")}


def lines_of(folder: Path) -> list[tuple[str, ...]]:
    """The lines of a tidy table without their numbers, which private noise changes."""
    with (folder / "results.csv").open() as file:
        names = ("epsilon", "seed", "figure", "of", "settings_hash")
        return [tuple(row[name] for name in names) for row in csv.DictReader(file)]


def compare(name: str, broken: Path, whole: Path) -> None:
    """Compares the results of the killed study with those of the undisturbed one."""
    if name == "privacy":
        assert lines_of(broken) == lines_of(whole), "the tables have other lines"
        return
    for file in ("results.csv", "results.md"):
        assert (broken / file).read_bytes() == (whole / file).read_bytes(), f"{file} differs"


def run_trial(name: str, folder: Path, kills: int, seed: int, overrides: Sequence[str]) -> None:
    """Runs both studies and compares them."""
    whole, broken = folder / "whole", folder / "broken"
    begun = time.monotonic()
    assert study(name, whole, overrides, folder / "whole.log")
    seconds = time.monotonic() - begun
    print(f"undisturbed: {seconds:.0f} s, {len(finished(whole))} cells", flush=True)
    draw, before = random.Random(seed), finished(broken)
    for number in range(kills):
        moment = draw.uniform(0, min(2 / kills, 0.9) * seconds)
        assert not study(name, broken, overrides, folder / "broken.log", moment), (
            "it was never killed"
        )
        after = finished(broken)
        assert {path: after.get(path) for path in before} == before, "a cell was run twice"
        before = after
        print(f"kill {number + 1} after {moment:.0f} s, {len(after)} cells finished", flush=True)
    assert study(name, broken, overrides, folder / "broken.log")
    after = finished(broken)
    assert {path: after[path] for path in before} == before, "a cell was run twice"
    assert {path.parent.name for path in after} == {path.parent.name for path in finished(whole)}
    compare(name, broken, whole)
    print(f"killed {kills} times; the results are those of the undisturbed study")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--study", choices=tuple(SMALL), default="paper")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    given.folder.mkdir(parents=True)
    run_trial(given.study, given.folder.resolve(), given.kills, given.seed, given.overrides)


if __name__ == "__main__":
    main()
