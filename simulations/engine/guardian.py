"""Ends the processes of a run where the process that started them is killed (Linux).

`kill -9` leaves a launcher no moment to end what it started. A second process, the guardian, waits
for that: it reads a pipe to which only the launcher could write. The kernel closes the pipe with
the launcher, in whatever way that ends. The guardian then ends every process that carries the
run's marker in its environment.

The kernel can end a child with its parent (`PR_SET_PDEATHSIG`), but a grandchild does not inherit
that, and Flower's and Ray's programs start each other. A process group or a session does not reach
all of them either: some begin their own. All inherit the marker.
"""

import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simulations.engine.processes import marked_processes, send_signal

_PAUSE = 0.1  # seconds between two looks


@contextmanager
def guarded(temporary: Path | None = None) -> Iterator[str]:
    """Gives a marker. Processes that carry it end with the block, or with this process.

    Args:
        temporary: A folder that is removed when they have ended.

    Yields:
        The value of `MARKER_VARIABLE` for the environment of the processes.
    """
    marker = uuid.uuid4().hex
    folders = [str(temporary)] if temporary else []
    guardian = subprocess.Popen(
        [sys.executable, "-m", "simulations.engine.guardian", marker, *folders],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        # Ctrl-C and the end of the terminal are not for it.
        start_new_session=True,
    )
    try:
        yield marker
    finally:
        assert guardian.stdin is not None
        guardian.stdin.close()
        guardian.wait()


def end_all(marker: str) -> None:
    """Sends SIGKILL to all processes with the marker until none is left."""
    looks_in_vain = 0
    # Twice, since a process may start another one while /proc is read.
    while looks_in_vain < 2:
        alive = marked_processes(marker)
        for pid in alive:
            send_signal(pid, signal.SIGKILL)
        looks_in_vain = 0 if alive else looks_in_vain + 1
        time.sleep(_PAUSE)


def main() -> None:
    """Waits for the end of the process at the other end of standard input, then does its work."""
    marker, *folders = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_all(marker)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
