"""One run through everything that may happen to a federation, a misfortune in each of its rounds.

The run ends with the weights of a simulation that nothing disturbed: what a site does again, or a
server after a restart, comes out as it would have. The tests follow each other on one run, but each
can be had alone.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from docker_engine import RUNS, SITES, TAG, Federation, docker

from configs.compose import flatten
from mediffusion_core.run_io.run_folder import RunFolder

pytestmark = [pytest.mark.docker, pytest.mark.slow]

ROUNDS = 6
PATIENCE = 900
"""Seconds for what takes one or two minutes on a machine that is not busy."""
STEP = re.compile(r"(Receiving|Sending): (\S+) message")


@dataclass
class Run:
    """A run of several joint rounds, and the command by which it goes on."""

    federation: Federation
    overrides: tuple[str, ...]
    sign: Callable[[str], str]
    folder: str = ""

    def begin(self) -> None:
        self.federation.wait_until_all_are_there(PATIENCE)
        again = (f"run.folder={self.folder}",) if self.folder else ()
        folder = self.federation.start(self.sign(flatten((*self.overrides, *again))))
        self.folder = self.folder or folder

    def joint_rounds(self) -> int:
        """How many joint rounds are done, by the run's own record."""
        record = self.federation.inside("server", f"cat {self.folder}/metrics.jsonl").stdout
        return sum('"stage": "joint"' in line for line in record.splitlines())

    def wait_for_a_round(self) -> int:
        """Until a site is in the midst of a joint round; how many are done then."""
        deadline = time.monotonic() + PATIENCE
        while True:
            steps = STEP.findall(self.federation.compose("logs", "--no-color", "site-0"))
            if steps and steps[-1] == ("Receiving", "train.joint"):
                return self.joint_rounds()
            assert time.monotonic() < deadline, self.federation.logs()
            time.sleep(0.5)

    def wait_for_more_than(self, done: int) -> None:
        """Until the round that was disturbed is done."""
        deadline = time.monotonic() + PATIENCE
        while self.joint_rounds() <= done:
            assert time.monotonic() < deadline, self.federation.logs()
            time.sleep(2)


@pytest.fixture(scope="module")
def overrides(overrides: tuple[str, ...]) -> tuple[str, ...]:
    rounds = (f"federation.num_rounds={ROUNDS}", f"evaluation.every={ROUNDS}")
    # A round without one of the sites would end with other weights.
    return (*overrides, *rounds, f"federation.min_sites={len(SITES)}")


@pytest.fixture(scope="module")
def run(
    federation: Federation, overrides: tuple[str, ...], sign: Callable[[str], str]
) -> Iterator[Run]:
    begun = Run(federation, overrides, sign)
    begun.begin()
    yield begun


@pytest.mark.short
def test_a_site_that_is_killed_is_asked_again(run: Run) -> None:
    done = run.wait_for_a_round()
    run.federation.compose("kill", "site-0")
    run.federation.compose("start", "site-0")
    run.wait_for_more_than(done)


def test_a_site_whose_network_is_cut_for_30_seconds_goes_on(run: Run) -> None:
    done = run.wait_for_a_round()
    wire = (f"{run.federation.project}_federation", run.federation.container("site-0"))
    docker("network", "disconnect", *wire)
    time.sleep(30)
    docker("network", "connect", *wire)
    run.wait_for_more_than(done)


def test_a_site_that_stands_still_for_60_seconds_goes_on(run: Run) -> None:
    done = run.wait_for_a_round()
    run.federation.compose("pause", "site-0")
    time.sleep(60)
    run.federation.compose("unpause", "site-0")
    run.wait_for_more_than(done)


def test_a_run_goes_on_after_the_server_was_restarted(run: Run) -> None:
    done = run.wait_for_a_round()
    run.federation.compose("restart", "--timeout", "5", "server")
    run.begin()
    run.wait_for_more_than(done)


def test_a_run_goes_on_after_every_process_was_killed(run: Run) -> None:
    """Kills all processes at once, as a loss of power does; the engine starts them again."""
    done = run.wait_for_a_round()
    processes = [str(run.federation.process(service)) for service in ("server", *SITES)]
    image = ("--entrypoint", "python", f"fed-mediffusion-site:{TAG}")
    script = "import os, sys; [os.kill(int(number), 9) for number in sys.argv[1:]]"
    host = ("--pid", "host", "--user", "0", "--cap-add", "KILL")
    docker("run", "--rm", *host, *image, "-c", script, *processes)
    run.begin()
    run.wait_for_more_than(done)


def test_nothing_was_lost(
    run: Run, tmp_path: Path, must_be_simulated: Callable[[Path, tuple[str, ...]], None]
) -> None:
    """Each round stands once in the record, of all sites, and the weights are those undisturbed."""
    assert run.federation.wait_for_end(run.folder, PATIENCE) == "finished:completed"
    run.federation.copy_out("server", run.folder, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "completed"
    history = RunFolder(tmp_path / "run").history()
    joint = [line for line in history if line["stage"] == "joint"]
    assert [line["round"] for line in joint] == list(range(1, ROUNDS + 1))
    assert all(set(line["sites"]) == set(SITES) for line in joint)
    others = [(line["stage"], line["round"]) for line in history if line["stage"] != "joint"]
    assert others == [
        ("census", 1),
        ("autoencoder", 1),
        ("latents", 1),
        ("evaluation", 0),
        ("evaluation", ROUNDS),
    ]
    must_be_simulated(tmp_path / "run", run.overrides)


PRIVATE = (
    "privacy=dp",
    "privacy.target_epsilon=null",
    "privacy.noise_multiplier=1.0",
    "privacy.target_delta=1e-4",
    "privacy.batch_size=16",
    "privacy.physical_batch_size=8",
    "federation.num_rounds=1",
    "evaluation.every=1",
)


def charged(federation: Federation, site: str) -> list[str]:
    """The stages of the ledger's entries at a site."""
    script = (
        "from pathlib import Path; from mediffusion_core.privacy.ledger.ledger import Ledger;"
        f"ledger = Ledger.open(Path('{RUNS}/ledger/{site}'), begin=False);"
        "print(*[entry.stage for entry in ledger.entries()])"
    )
    return federation.inside(site, f'python -c "{script}"').stdout.split()


def test_charges_survive_the_kill_of_a_site(
    federation: Federation, overrides: tuple[str, ...], sign: Callable[[str], str]
) -> None:
    """The round that was lost is charged, and so is the one that took its place."""
    private = Run(federation, (*overrides, *PRIVATE), sign)
    private.begin()
    deadline = time.monotonic() + PATIENCE
    while "joint" not in charged(federation, "site-0"):
        assert time.monotonic() < deadline, federation.logs()
        time.sleep(2)
    federation.compose("kill", "site-0")
    federation.compose("start", "site-0")
    assert federation.wait_for_end(private.folder, PATIENCE) == "finished:completed"
    begun = ["census", "autoencoder", "latents", "joint"]
    # The others may have ended the run while the site's container was still starting.
    while not (stages := charged(federation, "site-0")):
        assert time.monotonic() < deadline, federation.logs()
        time.sleep(2)
    assert stages[:4] == begun
    assert stages[4:] in ([], ["joint"])
    assert charged(federation, "site-1") == begun
