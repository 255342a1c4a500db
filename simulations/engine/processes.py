"""The processes of one run, and their signals."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mediffusion_core.common.parent import tied

MARKER_VARIABLE = "FED_MEDIFFUSION_LAUNCH"
KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**28),  # above the moments of a network, packed as one block
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""Environment of a process that trains: it keeps freed memory, since new pages of the system would
cost a third of a round's time."""


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP in a list instead of ending the process.

    An ignored signal, such as SIGHUP under `nohup`, stays ignored.
    """
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with _handled(numbers, lambda number, _: received.append(number)):
        yield received


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Turns the first SIGTERM or SIGHUP into a KeyboardInterrupt, so that results can be saved.

    Later signals, such as those of a closing terminal, do not interrupt the saving. An ignored
    signal, such as SIGHUP under `nohup`, stays ignored.
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
    """Sets a handler for the signals that are not ignored."""
    previous = {}
    try:
        for number in numbers:
            if signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, handler)
    except ValueError:
        # Only the main thread may set handlers.
        pass
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def run_to_end(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Runs a command and returns its output and exit status.

    The first SIGINT, SIGTERM or SIGHUP is sent on to the command; this function then waits for the
    command's end. Where this process is killed, so is the command.

    Raises:
        KeyboardInterrupt: after the end of a command to which a signal was sent on.
    """
    with noted_signals() as received:
        child = subprocess.Popen(
            tied(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Otherwise it would get Ctrl-C twice, from the terminal and from here.
            start_new_session=True,
        )
        is_signalled = False
        while True:
            try:
                out, err = child.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                if received and not is_signalled:
                    send_signal(child.pid, signal.Signals(received[0]))
                    is_signalled = True
        if received:
            raise KeyboardInterrupt
    return subprocess.CompletedProcess(command, child.returncode, out, err)


def marked_processes(marker: str) -> list[int]:
    """Process ids of the running processes that inherited the marker."""
    return processes_with(MARKER_VARIABLE, marker)


def processes_with(variable: str, value: str) -> list[int]:
    """Process ids of the running processes that started with this environment variable."""
    wanted = f"{variable}={value}".encode()
    return [pid for pid in process_ids() if wanted in read_process(pid, "environ").split(b"\0")]


def simulation_process(marker: str) -> int | None:
    """Process id of Flower's simulation runtime with the marker; None before it starts."""
    for pid in marked_processes(marker):
        if b"flwr-simulation" in read_process(pid, "cmdline"):
            return pid
    return None


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    return read_process(pid, "cmdline") != b""


def process_ids() -> list[int]:
    """Process ids of all running processes."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def read_process(pid: int, name: str) -> bytes:
    """The content of a file in /proc of one process; empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def send_signal(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a process, unless it has ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def memory_of(pids: Iterable[int]) -> int:
    """Bytes of memory that the processes use; shared pages count once (PSS)."""
    total = 0
    for pid in pids:
        for line in read_process(pid, "smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                total += int(line.split()[1]) * 1024
    return total
