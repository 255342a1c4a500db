"""Starting `fed-mediffusion` as a user does, and finding and ending what it starts."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from simulations.engine.processes import (
    MARKER_VARIABLE,
    marked_processes,
    process_ids,
    read_process,
)

LIMIT = 600.0  # seconds, six times what a run takes alone; then it has failed


@dataclass
class Command:
    """A running `fed-mediffusion`, with its output in two files."""

    process: "subprocess.Popen[bytes]"
    out: Path
    err: Path

    def wait(self) -> int:
        """Waits for the end and returns the exit status."""
        return self.process.wait(timeout=LIMIT)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Waits until the condition holds; fails where the command ends before it does."""
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert self.process.poll() is None, f"it ended too early: {self.err.read_text()}"
            assert time.monotonic() < deadline, "the condition never held"
            time.sleep(0.02)

    def marker(self) -> str:
        """The marker that all processes of the launched run inherit; waits for the first."""
        found: list[str] = []

        def look() -> bool:
            found.extend(filter(None, map(self._marker_of, process_ids())))
            return bool(found)

        self.wait_until(look)
        return found[0]

    def kill(self) -> None:
        """SIGKILL to the command alone; fails unless all that it started soon ends, too."""
        marker = self.marker()
        assert len(marked_processes(marker)) > 3
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + 30
        while alive := marked_processes(marker):
            assert time.monotonic() < deadline, [_command_line(pid) for pid in alive]
            time.sleep(0.05)

    def _marker_of(self, pid: int) -> str | None:
        """The marker of a process that is a child of the command."""
        status = read_process(pid, "status").decode(errors="replace")
        if f"PPid:\t{self.process.pid}\n" not in status:
            return None
        prefix = f"{MARKER_VARIABLE}=".encode()
        for variable in read_process(pid, "environ").split(b"\0"):
            if variable.startswith(prefix):
                return variable.removeprefix(prefix).decode()
        return None


def start(arguments: Sequence[str], folder: Path, temporary: Path, **environment: str) -> Command:
    """Starts the installed command in a folder.

    Args:
        arguments: As on the command line.
        folder: Working folder, which also receives the output.
        temporary: Where the run may put its temporary files; a short path.
        environment: Variables to set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out, err = folder / "out.txt", folder / "err.txt"
    program = Path(sys.executable).with_name("fed-mediffusion")
    process = subprocess.Popen(
        [str(program), *arguments],
        cwd=folder,
        env=os.environ | {"TMPDIR": str(temporary), **environment},
        stdin=subprocess.DEVNULL,
        stdout=out.open("wb"),
        stderr=err.open("wb"),
        start_new_session=True,
    )
    return Command(process, out, err)


def workers(marker: str) -> list[int]:
    """Process ids of a run's Ray workers, in which the sites work."""
    return [pid for pid in marked_processes(marker) if b"ClientAppActor" in _command_line(pid)]


def _command_line(pid: int) -> bytes:
    return read_process(pid, "cmdline")
