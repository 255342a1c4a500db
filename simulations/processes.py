"""The processes of one run: found by an environment variable that all of them inherit."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARKER_VARIABLE = "FED_MEDIFFUSION_LAUNCH"


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Collect the signals that ask for the end instead of being interrupted by them."""
    received: list[int] = []
    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            previous[number] = signal.signal(number, lambda given, _: received.append(given))
    except ValueError:
        # Only the main thread may handle signals; elsewhere they are its caller's business.
        pass
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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
