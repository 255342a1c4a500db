"""Signals: which are noted, and how they reach a command that was started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulations.engine.processes import (
    interrupted_by_signals,
    is_alive,
    marked_processes,
    noted_signals,
    run_to_end,
)

# Notes each signal, and needs a while to end, as a run does.
CHILD = """#!{python}
import signal, sys, time
from pathlib import Path

folder, received = Path({folder!r}), []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda given, _: received.append(given))
(folder / "started").touch()
while not received:
    time.sleep(0.01)
time.sleep(1.5)
(folder / "ended").write_text(" ".join(signal.Signals(one).name for one in received))
sys.exit(130)
"""

# The study, with the script above in place of Python where it starts a run.
STUDY = """
import sys
from simulations.cli import main

sys.executable = sys.argv.pop(1)
main.main()
"""


@pytest.fixture
def ignored() -> Iterator[signal.Signals]:
    """A signal that is ignored, as `nohup` has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield signal.SIGHUP
    signal.signal(signal.SIGHUP, before)


def test_a_signal_that_is_ignored_stays_ignored(ignored: signal.Signals) -> None:
    with noted_signals() as received:
        signal.raise_signal(ignored)
        assert signal.getsignal(ignored) == signal.SIG_IGN
        signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM]
    assert signal.getsignal(ignored) == signal.SIG_IGN


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_interrupts_and_later_ones_do_not(number: signal.Signals) -> None:
    """`nohup` and a shell's background leave signals ignored, so each gets its handler here."""
    heeded = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, heeded)
    try:
        finished = False
        with pytest.raises(KeyboardInterrupt), interrupted_by_signals():
            try:
                signal.raise_signal(number)
            finally:
                if number != signal.SIGINT:
                    signal.raise_signal(number)
                finished = True
        assert finished
        assert signal.getsignal(number) == heeded
    finally:
        signal.signal(number, before)


def test_a_command_that_ends_by_itself_gives_its_output_and_status() -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    done = run_to_end([sys.executable, "-c", code])
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_study_that_is_stopped_lets_its_run_end_first(
    tiny: tuple[str, ...], tmp_path: Path, number: signal.Signals
) -> None:
    script = tmp_path / "run.py"
    script.write_text(CHILD.format(python=sys.executable, folder=str(tmp_path)))
    script.chmod(0o755)
    arguments = ["study", "unlabelled", *tiny, "--seeds", "1", "--folder", str(tmp_path / "study")]
    study = subprocess.Popen(
        [sys.executable, "-c", STUDY, str(script), *arguments],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(tmp_path / "started", study)
    # As the terminal sends it: to all processes of the group.
    os.killpg(study.pid, number)
    assert study.wait(timeout=30) == 130
    assert (tmp_path / "ended").read_text() == number.name


# Starts a process in a session of its own, which starts another one there, and waits.
LAUNCHER = """
import os, subprocess, sys, time
from pathlib import Path
from simulations.engine.guardian import guarded

folder = Path(sys.argv[1])
nested = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
innermost = "import time; open('started', 'w').close(); time.sleep(600)"
(folder / "temporary").mkdir()
with guarded(folder / "temporary") as marker:
    (folder / "marker").write_text(marker)
    environment = os.environ | {"FED_MEDIFFUSION_LAUNCH": marker}
    command = [sys.executable, "-c", nested, innermost]
    subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)
    if sys.argv[2] == "wait":
        time.sleep(600)
    while not (folder / "started").exists():
        time.sleep(0.02)
"""


@pytest.mark.parametrize("end", ["kill", "wait"])
def test_what_a_killed_launcher_started_ends_with_it(tmp_path: Path, end: str) -> None:
    """So it does where the launcher just ends."""
    arguments = [str(tmp_path), "end" if end == "wait" else "wait"]
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, *arguments])
    if end == "kill":
        wait_for(tmp_path / "started", launcher)
        marker = (tmp_path / "marker").read_text()
        assert len(marked_processes(marker)) == 2
        launcher.kill()
    launcher.wait(timeout=60)
    marker = (tmp_path / "marker").read_text()
    deadline = time.monotonic() + 30
    while marked_processes(marker) or (tmp_path / "temporary").exists():
        assert end == "kill" and time.monotonic() < deadline
        time.sleep(0.02)


def test_a_command_is_killed_with_what_runs_it(tmp_path: Path) -> None:
    code = (
        "import os, time; from pathlib import Path; "
        f"Path({str(tmp_path)!r}, 'pid').write_text(str(os.getpid())); "
        f"Path({str(tmp_path)!r}, 'started').touch(); time.sleep(600)"
    )
    program = (
        "import sys; from simulations.engine.processes import run_to_end; "
        "run_to_end([sys.executable, '-c', sys.argv[1]])"
    )
    study = subprocess.Popen([sys.executable, "-c", program, code])
    wait_for(tmp_path / "started", study)
    pid = int((tmp_path / "pid").read_text())
    assert is_alive(pid)
    study.kill()
    study.wait()
    deadline = time.monotonic() + 30
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
