"""Kills real runs with SIGKILL at random moments, resumes them, and compares their ends.

    python tests/helpers/kill_trial.py FOLDER --minutes 7 [--in-process] [--private]

Three targets are killed in turn, as often as the minutes allow: the launcher (`fed-mediffusion
simulate`), Flower's simulation process with the server in it, and a Ray worker with a site in it;
with `--in-process` a process that has server and sites in it. After each kill no process of the run
may be left, nothing may hold the run folder, and the run must continue. Where it completes, its
last checkpoint, records, figures and selected model must be those of a run that nothing disturbed,
bit by bit; with `--private`, every round must be charged to the ledger of each site at least once.
FOLDER keeps the runs and `kills.jsonl`, so that a second call goes on. Needs Linux.
"""

import argparse
import json
import math
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from conftest import TINY
from integration.processes import Command, start, workers

from mediffusion_core.common.component_folder import ComponentFolder, read_folder
from mediffusion_core.privacy.ledger.ledger import Ledger
from mediffusion_core.run_io.checkpoints import list_checkpoints, newest_checkpoint
from mediffusion_core.run_io.run_folder import RunFolder
from simulations.engine.processes import marked_processes, send_signal, simulation_process

SMALL = (
    "data.phantom.patients_per_site=[24,24,24]",
    "training.autoencoder.local_epochs=1",
    "training.joint.local_epochs=1",
    "federation.autoencoder_rounds=3",
    "federation.num_rounds=6",
    "federation.min_sites=3",  # a round without one of the sites would end with other weights
    "federation.local_normalisation=true",
    "training.joint.control_variates=true",
    "evaluation.every=2",
    "evaluation.counterfactual.count=2",
)
PRIVATE = (
    "federation.local_normalisation=false",
    "training.joint.control_variates=false",
    "privacy=dp",
    "privacy.target_epsilon=null",
    "privacy.noise_multiplier=1.0",
    "privacy.target_delta=1e-3",
    "privacy.batch_size=8",
    "privacy.physical_batch_size=8",
)
UNLIKE = {"time", "seconds", "seconds_per_image", "commit", "contacts"}
"""Figures in which equal runs differ; a later call may be of another commit."""
SOON = 60.0  # seconds


@dataclass
class Trial:
    """Runs in a folder, one undisturbed and others that are killed."""

    folder: Path
    temporary: Path
    private: bool
    in_process: bool
    draw: random.Random = field(default_factory=random.Random)

    @property
    def targets(self) -> tuple[str, ...]:
        return ("process",) if self.in_process else ("launcher", "server", "site")

    @property
    def overrides(self) -> list[str]:
        private = PRIVATE if self.private else ()
        return [*TINY, *SMALL, *private, f"data.store='{self.folder / 'store'}'"]

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.folder / name)

    def undisturbed(self) -> tuple[RunFolder, float]:
        """A whole run, and how many seconds it took."""
        whole = self.run("whole")
        begun = time.monotonic()
        if not (whole.path / "summary.json").exists():
            # An evaluation with another number of threads adds in another order.
            killed = self.kill(self.targets[0], whole, math.inf)
            assert not killed
            (self.folder / "seconds").write_text(str(time.monotonic() - begun))
        return whole, float((self.folder / "seconds").read_text())

    def launch(self, run: RunFolder) -> Command:
        resumed = ["simulate", "--resume", str(run.path)]
        given = ["simulate", *self.overrides, f"run.folder='{run.path}'"]
        known = (run.path / "launch.json").exists()
        return start(resumed if known else given, self.folder / "work", self.temporary)

    def kill(self, target: str, run: RunFolder, within: float) -> bool:
        """Starts or resumes a run and kills it at a random moment; whether it was killed."""
        moment = time.monotonic() + within * self.draw.random()
        if target == "process":
            return self._kill_process(run, moment)
        command = self.launch(run)
        marker = command.marker()
        victim: Callable[[], int | None] = {
            "launcher": lambda: command.process.pid,
            "server": lambda: simulation_process(marker),
            "site": lambda: (workers(marker) or [None])[-1],
        }[target]
        while command.process.poll() is None:
            if time.monotonic() > moment and (pid := victim()):
                send_signal(pid, signal.SIGKILL)
                break
            time.sleep(0.02)
        status = command.wait()
        self._nothing_is_left(marker, run)
        killed = status != 0
        assert not killed or status in (1, -signal.SIGKILL), command.err.read_text()
        return killed

    def _kill_process(self, run: RunFolder, moment: float) -> bool:
        program = (
            "import sys; from simulations.engine.in_process import run_in_process as run; "
            "run('config', sys.argv[1:])"
        )
        arguments = [*self.overrides, f"run.folder='{run.path}'"]
        process = subprocess.Popen([sys.executable, "-c", program, *arguments])
        while process.poll() is None and time.monotonic() < moment:
            time.sleep(0.02)
        process.kill()
        return process.wait() != 0

    def _nothing_is_left(self, marker: str, run: RunFolder) -> None:
        deadline = time.monotonic() + SOON
        while left := [*marked_processes(marker), *self.temporary.glob("fedmed-*")]:
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
        with run.launched():  # the locks are free
            pass
        newest_checkpoint(list_checkpoints(run.checkpoints), _fail)

    def compare(self, run: RunFolder, whole: RunFolder) -> None:
        """Fails unless a run ended as the undisturbed one."""
        if self.private:
            self._is_charged(run)
            return
        newest = [list_checkpoints(one.checkpoints)[-1] for one in (run, whole)]
        assert newest[0].folder.name == newest[1].folder.name
        _same_arrays(*newest)
        _same_arrays(read_folder(run.model), read_folder(whole.model))
        assert _alike(run.history()) == _alike(whole.history())
        summaries = [json.loads((one.path / "summary.json").read_text()) for one in (run, whole)]
        assert _alike(summaries[0]) == _alike(summaries[1])

    def _is_charged(self, run: RunFolder) -> None:
        summary = json.loads((run.path / "summary.json").read_text())
        ledger = Ledger.open(run.path / "ledger", begin=False)
        for site, promised in summary["privacy"]["sites"].items():
            mine = [one for one in ledger.entries() if one.run.endswith(f"/{site}")]
            charged = Counter((one.stage, one.round_number) for one in mine)
            for line in run.history():
                if line["stage"] in ("autoencoder", "joint") and line["sites"][site]["steps"]:
                    assert charged[line["stage"], line["round"]] >= 1, (site, line)
            assert ledger.worst(1e-3) >= promised["epsilon"] * (1 - 1e-9)


def _fail(line: str) -> None:
    raise AssertionError(line)


def _same_arrays(found: ComponentFolder, expected: ComponentFolder) -> None:
    assert found.components() == expected.components() != []
    for component in expected.components():
        ours, theirs = found.load(component), expected.load(component)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert torch.equal(ours[name], value), (component, name)


def _alike(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _alike(item) for key, item in value.items() if key not in UNLIKE}
    return [_alike(item) for item in value] if isinstance(value, list) else value


def run_trial(trial: Trial, minutes: float) -> None:
    """Kills the targets in turn; the last broken run is completed before the minutes are over."""
    end = time.monotonic() + 60 * minutes
    whole, seconds = trial.undisturbed()
    log = trial.folder / "kills.jsonl"
    log.touch()

    def done() -> list[dict[str, Any]]:
        return [json.loads(line) for line in log.read_text().splitlines()]

    def attempt(within: float) -> bool:
        """Whether the run completed."""
        before = done()
        target = trial.targets[len(before) % len(trial.targets)]
        run = trial.run(f"broken-{sum(one['completed'] for one in before)}")
        lines = len(run.history())
        completed = not trial.kill(target, run, within)
        if completed:
            trial.compare(run, whole)
        entry = {"target": target, "completed": completed, "lines": [lines, len(run.history())]}
        with log.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        return completed

    trial.draw.seed(len(done()))
    completed = True
    while time.monotonic() + 2 * seconds < end:
        completed = attempt(seconds)
    if not completed:
        assert attempt(math.inf)
    counts = Counter(one["target"] for one in done() if not one["completed"])
    number = sum(one["completed"] for one in done())
    print(f"killed: {dict(counts)}; completed, and equal to the undisturbed run: {number}")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--in-process", action="store_true")
    parser.add_argument("--private", action="store_true")
    given = parser.parse_args()
    folder = given.folder.resolve()
    temporary = Path("/tmp") / f"k-{folder.name[:8]}"
    for path in (folder, temporary):
        path.mkdir(parents=True, exist_ok=True)
    run_trial(Trial(folder, temporary, given.private, given.in_process), given.minutes)


if __name__ == "__main__":
    main()
