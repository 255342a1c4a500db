"""Docker as the tests drive it: images, one federation of compose files, and its runs."""

import json
import os
import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
APP = "/opt/fed-mediffusion/app"
SITES = ("site-0", "site-1", "site-2")
RUNS = "/var/lib/fed-mediffusion/runs"
TAG = "test"
USER = 10001
"""Of the containers' user."""


def docker(*arguments: str, timeout: float = 600, **environment: str) -> str:
    """Output of a docker command.

    Raises:
        AssertionError: with all it printed, if it fails.
    """
    done = attempt(*arguments, timeout=timeout, **environment)
    assert done.returncode == 0, f"docker {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def attempt(
    *arguments: str, timeout: float = 600, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """A docker command that may fail."""
    return subprocess.run(
        ["docker", *arguments],
        cwd=ROOT,
        env={**os.environ, "FED_MEDIFFUSION_TAG": TAG, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def has_engine() -> bool:
    """Whether `docker` is there and its engine answers."""
    try:
        return attempt("info", timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def signed(authority: Path, overrides: str) -> str:
    """The run configuration that `flwr run` is given, signed for the app in the server's image.

    It is made there and not at the server that runs.
    """
    keys = ("--user", "0", "--volume", f"{authority}:/keys:ro")
    image = ("--entrypoint", "fed-mediffusion", f"fed-mediffusion-server:{TAG}")
    options = ("--key", "/keys/signer.key", "--run-config", f'overrides="{overrides}"')
    return docker("run", "--rm", *keys, *image, "sign", APP, *options).strip()


def build_images() -> None:
    """The images as anyone builds them; extra arguments from $DOCKER_BUILD."""
    extra = os.environ.get("DOCKER_BUILD", "").split()
    for target in ("server", "site"):
        tag = f"fed-mediffusion-{target}:{TAG}"
        file = ("--file", "docker/Dockerfile", "--target", target, "--tag", tag)
        docker("build", *file, *extra, ".", timeout=1800)


@dataclass
class Federation:
    """The services of some compose files, under a project name of their own."""

    project: str
    files: tuple[str, ...]
    kits: Path | None = None
    seconds_to_healthy: float = field(default=0.0, init=False)

    def compose(self, *arguments: str, timeout: float = 600) -> str:
        return docker(*self._compose, *arguments, timeout=timeout, **self._environment)

    def try_compose(
        self, *arguments: str, timeout: float = 600
    ) -> "subprocess.CompletedProcess[str]":
        return attempt(*self._compose, *arguments, timeout=timeout, **self._environment)

    def up(self, *services: str) -> None:
        begun = time.monotonic()
        self.compose("up", "--detach", "--wait", "--no-build", *services)
        self.seconds_to_healthy = time.monotonic() - begun
        print(f"\n{self.project}: {self.seconds_to_healthy:.0f} s from up to healthy")

    def down(self) -> None:
        self.try_compose("down", "--volumes", "--timeout", "3")

    def run(self, config: str, timeout: float = 1200) -> str:
        """Runs the app through `flwr run`, prints its log, and returns how it ended."""
        print(self.flwr("run", APP, "deployment", "--stream", "-c", config, timeout=timeout))
        return self.last_status()

    def start(self, config: str) -> str:
        """Starts a run, does not wait for it, and returns its folder at the server."""
        self.flwr("run", APP, "deployment", "-c", config)
        return f"{RUNS}/flwr-{self._last_run()['run-id']}"

    def last_status(self) -> str:
        return str(self._last_run()["status"])

    def _last_run(self) -> dict[str, object]:
        return dict(json.loads(self.flwr("list", "deployment", "--format", "json"))["runs"][0])

    def wait_for_end(self, folder: str, seconds: float) -> str:
        """How the newest run ended, once its folder at the server says that it did."""
        deadline = time.monotonic() + seconds
        summary = f"cat {folder}/summary.json"
        while not self.inside("server", summary).stdout or self.last_status() == "running":
            assert time.monotonic() < deadline, self.logs()
            time.sleep(2)
        return self.last_status()

    def flwr(self, *arguments: str, timeout: float = 600) -> str:
        return self.compose("exec", "-T", "server", "flwr", *arguments, timeout=timeout)

    def online(self) -> int:
        """How many sites the SuperLink sees; none where it is not there itself."""
        found = json.loads(self.flwr("supernode", "list", "deployment", "--format", "json"))
        return sum(node["status"] == "online" for node in found.get("nodes", ()))

    def logs(self, *services: str) -> str:
        return self.compose("logs", "--no-color", "--tail", "200", *services)

    def wait_for_log(
        self, service: str, pattern: str, seconds: float = 120, since: str = "0"
    ) -> str:
        """The service's log once it has the pattern, of a line after the given time."""
        deadline = time.monotonic() + seconds
        log = ("logs", "--no-color", "--since", since, service)
        while not re.search(pattern, text := self.compose(*log)):
            assert time.monotonic() < deadline, f"no {pattern!r} in\n{text}"
            time.sleep(0.5)
        return text

    def received(self, service: str) -> int:
        """Bytes that have come to the service's container, as the kernel counts them."""
        return int(self.inside(service, "cat /sys/class/net/eth0/statistics/rx_bytes").stdout)

    def container(self, service: str) -> str:
        """Id of the service's container."""
        return self.compose("ps", "--all", "--quiet", service).strip()

    def process(self, service: str) -> int:
        """Number of the service's first process on the engine's machine."""
        return int(docker("inspect", "--format={{.State.Pid}}", self.container(service)))

    def wait_until_all_are_there(self, seconds: float = 600) -> None:
        """Until the server answers and sees all sites, whatever happened to them."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if self.online() == len(SITES):
                    return
            except (AssertionError, ValueError):  # the server itself is not back yet
                pass
            assert time.monotonic() < deadline, self.logs()
            time.sleep(2)

    def inside(self, service: str, script: str) -> "subprocess.CompletedProcess[str]":
        """A shell script within a service's container, as its user."""
        return self.try_compose("exec", "-T", service, "sh", "-c", script)

    def copy_out(self, service: str, path: str, target: Path) -> None:
        self.compose("cp", f"{service}:{path}", str(target))

    @property
    def _compose(self) -> tuple[str, ...]:
        files = [part for file in self.files for part in ("--file", f"docker/{file}")]
        return ("compose", "--project-name", self.project, *files)

    @property
    def _environment(self) -> dict[str, str]:
        return {"FED_MEDIFFUSION_KITS": str(self.kits)} if self.kits else {}
