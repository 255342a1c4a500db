"""Runs one simulated federation through ``flwr run`` and leaves no process behind (Linux).

Where the launcher itself is killed, its guardian ends the others (`simulations.engine.guardian`).

The SuperLink is started here rather than by ``flwr run``: the one which that command starts
keeps the environment and the folder of its first run, outlives it, and serves the next runs
too. Ours has its own home, port and empty working folder, and ends with the run.
"""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Literal

import tomli_w

from mediffusion_core.common.machine import available_cores
from simulations.engine.flower_environment import flower_environment
from simulations.engine.flower_log import ERROR_PREFIX, error_line, ray_did_not_start, refusal
from simulations.engine.guardian import guarded
from simulations.engine.processes import (
    is_alive,
    marked_processes,
    memory_of,
    noted_signals,
    send_signal,
    simulation_process,
)
from simulations.engine.ray_cluster import RayCluster
from simulations.engine.temporary import temporary_root

ERROR_FILE = "error.txt"

_CONNECTION = "launcher"
_TICK = 0.2  # seconds between two looks at the run
_MEMORY_PERIOD = 5.0  # seconds between two readings of the processes' memory
_START_LIMIT = 90.0  # seconds the SuperLink may take to answer
_GRACE = 5.0  # seconds between SIGTERM and SIGKILL
_LOST_LIMIT = 10.0  # seconds a run may stay unfinished without its simulation process


@dataclass(frozen=True)
class Launch:
    """Inputs of one simulated federation.

    Attributes:
        assemble: puts the Flower app, with its ``pyproject.toml``, into an empty folder.
        run_config: keys of the app's ``[tool.flwr.app.config]`` and what they become.
        num_sites: number of simulated sites.
        cpus_per_site: CPU cores of one site; sites wait for each other where cores run out.
        run_folder: where server and sites write.
        log_file: receives all output of Flower, the server and the sites (appended).
        cluster: Ray cluster on which the sites work; None for a Ray that ends with the run.
    """

    assemble: Callable[[Path], object]
    run_config: Mapping[str, str]
    num_sites: int
    cpus_per_site: float
    run_folder: Path
    log_file: Path
    cluster: RayCluster | None = None


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended, in one line why, and the most memory all its processes used at once."""

    status: Literal["completed", "failed", "stopped"]
    detail: str
    peak_memory: int = 0


class _FailedError(Exception):
    """The run cannot complete; the text is the outcome's detail unless the log knows better."""


class _StoppedError(Exception):
    """A signal asked for the end; the text names it."""


def launch(launch: Launch, on_tick: Callable[[], None] | None = None) -> RunOutcome:
    """Run one federation to its end and end every process that it started.

    SIGINT, SIGTERM and SIGHUP stop the run where this is called in the main thread; the
    files in the run folder stay. A run whose Ray took too long to start is tried once more.

    Args:
        launch: the run.
        on_tick: called about five times a second while the run lasts.
    """
    launch.run_folder.mkdir(parents=True, exist_ok=True)
    with noted_signals() as received, launch.log_file.open("ab") as log:
        outcome, is_early = _attempt(launch, log, received, on_tick)
        if outcome.status == "failed" and is_early and not received:
            log.write(f"launcher: {outcome.detail}; Ray is started once more\n".encode())
            log.flush()
            outcome, _ = _attempt(launch, log, received, on_tick)
        return outcome


def _attempt(
    launch: Launch, log: BinaryIO, received: list[int], on_tick: Callable[[], None] | None
) -> tuple[RunOutcome, bool]:
    """One federation from its start to its end, and whether it failed before Ray had started."""
    (launch.run_folder / ERROR_FILE).unlink(missing_ok=True)
    # A cluster's nodes import the app from here, and share no folder but the run's.
    root = launch.run_folder if launch.cluster else temporary_root()
    base = Path(tempfile.mkdtemp(prefix="fedmed-", dir=root))
    with guarded(base) as marker:
        federation = _Federation(launch, base, marker, log, received, on_tick)
        try:
            outcome = replace(federation.follow(), peak_memory=federation.peak_memory)
            return outcome, ray_did_not_start(federation.log_text())
        finally:
            federation.end()


def concurrent_sites(num_sites: int, cpus_per_site: float, cores: int) -> int:
    """Number of sites that work at the same time on ``cores`` cores, at least one."""
    return max(1, min(num_sites, math.floor(cores / cpus_per_site + 1e-9)))


@dataclass
class _Federation:
    """The processes of one run, all of them marked by one environment variable."""

    launch: Launch
    base: Path
    marker: str
    log: BinaryIO
    received: list[int]
    on_tick: Callable[[], None] | None
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    peak_memory: int = 0
    memory_read: float = 0.0

    def __post_init__(self) -> None:
        self.log_start = self.launch.log_file.stat().st_size
        self.port = _free_port()
        self.work, self.app, home = (self.base / name for name in ("work", "app", "home"))
        for folder in (self.work, self.app, home):
            folder.mkdir()
        self.launch.assemble(self.app)
        connection = {"address": f"127.0.0.1:{self.port}", "insecure": True}
        config = {"superlink": {"default": _CONNECTION, _CONNECTION: connection}}
        (home / "config.toml").write_text(tomli_w.dumps(config))
        # A file, since Flower's own parser of key=value strings knows no escaped quotes.
        self.run_config = self.base / "run_config.toml"
        self.run_config.write_text(tomli_w.dumps(dict(self.launch.run_config)))
        self.environment = flower_environment(
            self.base, home, self.marker, self.launch.cpus_per_site, self.launch.cluster
        )

    def follow(self) -> RunOutcome:
        try:
            superlink = self._start_superlink()
            lost = self._submit_and_wait(superlink)
            status, details = self._wait_for_status(superlink, lost)
        except _StoppedError as stop:
            return RunOutcome(
                "stopped", f"stopped by {stop}; its files stay in {self.launch.run_folder}"
            )
        except _FailedError as error:
            return RunOutcome("failed", self._detail(str(error)))
        if status == "finished:completed":
            return RunOutcome("completed", f"completed, see {self.launch.run_folder}")
        if status == "finished:stopped":
            return RunOutcome("stopped", "stopped from outside")
        return RunOutcome("failed", self._detail(f"{status}: {details}"))

    def end(self) -> None:
        """End everything that carries the marker, first politely."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            # Once each: a second SIGTERM would cut short what the first one started.
            told: set[int] = set()
            deadline = time.monotonic() + _GRACE
            while (alive := set(marked_processes(self.marker))) and time.monotonic() < deadline:
                for pid in alive - told:
                    send_signal(pid, number)
                told |= alive
                time.sleep(0.1)
        for child in self.children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=_GRACE)

    def _start(self, command: str, *arguments: str) -> "subprocess.Popen[bytes]":
        program = shutil.which(command, path=self.environment["PATH"])
        if program is None:
            raise _FailedError(f"{command} is not installed beside {sys.executable}")
        child = subprocess.Popen(
            [program, *arguments],
            cwd=self.work,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for the launcher, which then ends the others in its own way.
            start_new_session=True,
        )
        self.children.append(child)
        return child

    def _start_superlink(self) -> "subprocess.Popen[bytes]":
        address = ("--host", "127.0.0.1", "--port", str(self.port))
        superlink = self._start("flower-superlink", "--insecure", "--simulation", *address)
        deadline = time.monotonic() + _START_LIMIT
        while not _answers(self.port):
            if superlink.poll() is not None:
                raise _FailedError(f"the SuperLink did not start (exit {superlink.returncode})")
            if time.monotonic() > deadline:
                raise _FailedError(f"the SuperLink did not answer within {_START_LIMIT:.0f} s")
            self._pause(0.05)
        return superlink

    def _submit_and_wait(self, superlink: "subprocess.Popen[bytes]") -> bool:
        """Submit the run and follow its log, which ends when the run does.

        Returns:
            Whether the simulation process went and the log did not end.
        """
        options = ("--run-config", str(self.run_config), "--federation-config", self._resources())
        submission = self._start("flwr", "run", str(self.app), _CONNECTION, "--stream", *options)
        simulation: int | None = None
        lost_since: float | None = None
        while submission.poll() is None:
            self._pause(_TICK)
            if superlink.poll() is not None:
                raise _FailedError(f"the SuperLink ended early (exit {superlink.returncode})")
            # Flower waits for missed heartbeats before it calls a killed simulation failed.
            if simulation is None:
                simulation = simulation_process(self.marker)
            elif not is_alive(simulation):
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > _LOST_LIMIT:
                    return True
        if submission.returncode != 0:
            said = refusal(self.log_text()) or f"see {self.launch.log_file}"
            raise _FailedError(f"flwr run refused the run: {said}")
        return False

    def _resources(self) -> str:
        """Flower's number of sites and Ray's CPUs for each."""
        plan = self.launch
        if plan.cluster:
            cpus = f"client-resources-num-cpus={plan.cluster.cpus_per_actor}"
        else:
            at_once = concurrent_sites(plan.num_sites, plan.cpus_per_site, available_cores())
            # Flower takes whole CPUs only, so one of Ray's CPUs stands for one site at work.
            cpus = f"client-resources-num-cpus=1 init-args-num-cpus={at_once}"
        return f"num-supernodes={plan.num_sites} {cpus}"

    def _wait_for_status(self, superlink: "subprocess.Popen[bytes]", lost: bool) -> tuple[str, str]:
        """Status and details of the only run that this SuperLink has seen, once it ended."""
        while True:
            program = shutil.which("flwr", path=self.environment["PATH"]) or "flwr"
            answer = subprocess.run(
                [program, "list", _CONNECTION, "--format", "json"],
                cwd=self.work,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                start_new_session=True,
            )
            if superlink.poll() is not None:
                raise _FailedError(f"the SuperLink ended early (exit {superlink.returncode})")
            runs = json.loads(answer.stdout or b"{}").get("runs", [])
            if not runs:
                raise _FailedError("Flower accepted no run")
            if runs[0]["status"].startswith("finished"):
                return runs[0]["status"], runs[0]["status-details"]
            if lost:
                raise _FailedError("the simulation process was killed")
            self._pause(1.0)

    def _pause(self, seconds: float) -> None:
        if self.received:
            raise _StoppedError(signal.Signals(self.received[0]).name)
        if self.on_tick is not None:
            self.on_tick()
        if time.monotonic() - self.memory_read > _MEMORY_PERIOD:
            processes = (os.getpid(), *marked_processes(self.marker))
            self.peak_memory = max(self.peak_memory, memory_of(processes))
            self.memory_read = time.monotonic()
        time.sleep(seconds)

    def log_text(self) -> str:
        """The log of this federation."""
        with self.launch.log_file.open("rb") as file:
            file.seek(self.log_start)
            return file.read().decode(errors="replace")

    def _detail(self, otherwise: str) -> str:
        written = self.launch.run_folder / ERROR_FILE
        if written.is_file() and (text := written.read_text(errors="replace").strip()):
            return text.splitlines()[0].removeprefix(ERROR_PREFIX)
        return error_line(self.log_text()) or " ".join(otherwise.split())


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2.0):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
