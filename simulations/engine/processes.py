"""The processes of one run: how they are found, and how signals reach them."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

MARKER_VARIABLE = "FED_MEDIFFUSION_LAUNCH"
KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**28),  # above the moments of a network, packed as one block
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""Of a process that trains: memory is kept rather than given back to the system, whose fresh pages
cost a third of a round's time."""


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Collect the signals that ask for the end instead of being interrupted by them.

    A signal that is ignored, as SIGHUP under `nohup`, stays ignored.
    """
    received: list[int] = []
    asking = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with _handled(asking, lambda given, _: received.append(given)):
        yield received


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """The first SIGTERM or SIGHUP interrupts as Ctrl-C does; what was done can then be kept.

    Those that follow it, as where a terminal is closed, do not interrupt the keeping. A signal that
    is ignored, as SIGHUP under `nohup`, stays ignored.
    """
    received: list[int] = []

    def interrupt(number: int, _: object) -> None:
        received.append(number)
        if len(received) == 1:
            raise KeyboardInterrupt(signal.Signals(number).name)

    with _handled((signal.SIGTERM, signal.SIGHUP), interrupt):
        yield


@contextmanager
def _handled(
    numbers: Sequence[signal.Signals], handler: Callable[[int, object], None]
) -> Iterator[None]:
    """Handles those of the signals that are not ignored."""
    previous = {}
    try:
        for number in numbers:
            if signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, handler)
    except ValueError:
        # Only the main thread may handle signals; elsewhere they are its caller's business.
        pass
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def run_to_end(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Runs a command and returns its output and exit status.

    The first signal that asks for the end is passed on to the command, which is then given the
    time that it needs to end what it started.

    Raises:
        KeyboardInterrupt: after the end of a command to which a signal was passed on.
    """
    with noted_signals() as received:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Else Ctrl-C would reach it twice: from the terminal and from here.
            start_new_session=True,
        )
        told = False
        while True:
            try:
                out, err = child.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                if received and not told:
                    send_signal(child.pid, signal.Signals(received[0]))
                    told = True
        if received:
            raise KeyboardInterrupt
    return subprocess.CompletedProcess(command, child.returncode, out, err)


def marked_processes(marker: str) -> list[int]:
    """Process ids of the living processes that inherited the marker."""
    wanted = f"{MARKER_VARIABLE}={marker}".encode()
    return [pid for pid in _process_ids() if wanted in read_process(pid, "environ").split(b"\0")]


def simulation_process(marker: str) -> int | None:
    """Process id of Flower's simulation runtime among the marked, None before it starts."""
    for pid in marked_processes(marker):
        if b"flwr-simulation" in read_process(pid, "cmdline"):
            return pid
    return None


def is_alive(pid: int) -> bool:
    """Whether the process still runs; one that only waits to be reaped does not."""
    return read_process(pid, "cmdline") != b""


def _process_ids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def read_process(pid: int, name: str) -> bytes:
    """A file of /proc about one process, empty where the process is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def send_signal(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a process that may already be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def memory_of(pids: list[int]) -> int:
    """Bytes of memory the processes use together; pages they share count once (PSS)."""
    total = 0
    for pid in pids:
        for line in read_process(pid, "smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                total += int(line.split()[1]) * 1024
    return total
