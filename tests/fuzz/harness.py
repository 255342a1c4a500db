"""Runs cases of a target, and fails on every outcome but a result and the boundary's own refusal.

A case is a Python literal, so a failing one is stored as text and can be replayed. Cases run in a
process of their own: its parent reports a crash or a hang of a decoder written in C.
"""

import ast
import logging
import mmap
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis.strategies import SearchStrategy

REPOSITORY = Path(__file__).parents[2]
MIB = 2**20
LARGEST_CASE = MIB
"""Bytes of a case as text."""
ADDRESSES = 8 * 2**30
"""Bytes of address space that the process may still map; a demand beyond it fails at once."""
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")
READS = ("open", "os.listdir", "os.scandir")
"""Python's audit events (PEP 578). Files that C++ libraries open themselves raise none."""


@dataclass(frozen=True)
class Target:
    """A boundary of the code, and cases for it.

    Attributes:
        root: The only folder that `run` may read or write.
        cases: Literals for `run`.
        run: Gives one case to the code.
        refused: The declared errors of the boundary.
        share: Part of the asked cases that is run, below 1 where a case is dear.
        seconds: CPU time that a case may take.
        mebibytes: Limit of the growth of the process, with the memory of the fuzzer itself.
        seeds: Valid inputs, for the coverage-guided fuzzer; empty where it does not pay.
        of_bytes: The case that stands for the bytes of that fuzzer.
    """

    root: Path
    cases: SearchStrategy[Any]
    run: Callable[[Any], object]
    refused: tuple[type[Exception], ...]
    share: float = 1.0
    seconds: float = 10.0
    mebibytes: int = 1024
    seeds: Sequence[bytes] = ()
    of_bytes: Callable[[bytes], Any] = lambda content: content


class HangError(BaseException):
    """A case took too long. No `except Exception` of the code may catch it."""


class ForbiddenError(AssertionError):
    """A case did what none may do."""


class Board:
    """Memory that the process of the cases and its parent share: the present case, the counts."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, LARGEST_CASE + 32)

    def start(self, case: object) -> None:
        text = repr(case).encode()[:LARGEST_CASE]
        self._memory[32 : 32 + len(text)] = text
        self._write(0, len(text))

    def count(self, accepted: bool) -> None:
        place = 8 if accepted else 16
        self._write(place, self._read(place) + 1)

    @property
    def case(self) -> str:
        """The case that started last, as text."""
        return self._memory[32 : 32 + self._read(0)].decode()

    @property
    def accepted(self) -> int:
        return self._read(8)

    @property
    def refused(self) -> int:
        return self._read(16)

    def _read(self, place: int) -> int:
        return int.from_bytes(self._memory[place : place + 8], "little")

    def _write(self, place: int, number: int) -> None:
        self._memory[place : place + 8] = number.to_bytes(8, "little")


class Guard:
    """Runs cases under limits of time, memory and files."""

    def __init__(self, target: Target, board: Board) -> None:
        """Starts to watch this process, for good: an audit hook stays."""
        self._target, self._board = target, board
        self._found: list[str] = []
        self._watches = False
        # The installed packages may read their own files, and import late.
        places = (target.root, REPOSITORY, sys.prefix, sys.base_prefix, "/proc", "/dev/null")
        self._allowed = tuple(Path(os.path.realpath(place)) for place in places)
        signal.signal(signal.SIGPROF, _raise_hang)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # What a case may ask for; how much it may use is measured below.
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        logging.disable()
        sys.addaudithook(self._audit)

    def __call__(self, case: object) -> None:
        """Runs one case; raises for every outcome that a target does not allow."""
        self._board.start(case)
        self._found.clear()
        # Not since the first case: safetensors 0.8 keeps 64 bytes of each tensor that it loads.
        before = _peak()
        signal.setitimer(signal.ITIMER_PROF, self._target.seconds)
        self._watches = True
        refusal: Exception | None = None
        try:
            self._target.run(case)
        except self._target.refused as error:
            refusal = error
        finally:
            self._watches = False
            signal.setitimer(signal.ITIMER_PROF, 0)
        if self._found:
            raise ForbiddenError(self._found[0])
        if refusal is not None and len(str(refusal).splitlines()) != 1:
            raise ForbiddenError(f"a refusal that is not one line: {refusal!r}")
        if (grown := (_peak() - before) // MIB) > self._target.mebibytes:
            raise ForbiddenError(f"the process grew by {grown} MiB")
        self._board.count(accepted=refusal is None)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._watches:
            return
        if event in FORBIDDEN:
            self._found.append(f"{event} {args[0]!r}")
        elif event in READS and isinstance(args[0], str | bytes | os.PathLike):
            path = Path(os.path.realpath(os.fsdecode(args[0])))
            if not any(path.is_relative_to(place) for place in self._allowed):
                self._found.append(f"{event} {str(path)!r}, outside of the root")


def _raise_hang(number: int, frame: object) -> None:
    raise HangError


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_child(board: Board, work: Callable[[], None], seconds: float) -> str | None:
    """Runs work in a forked process, and waits for it.

    Args:
        board: Shared with the process.
        work: Ends with an exception for a failing case.
        seconds: After which a case that goes on counts as a hang. Code in C hears no signal.

    Returns:
        What was wrong, None for nothing.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    done, since = (0, ""), time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        now = (board.accepted + board.refused, board.case)
        if now != done:
            done, since = now, time.monotonic()
        elif time.monotonic() - since > seconds:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"a case did not end within {seconds:g} s"
        time.sleep(0.2)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"the process ended by {signal.Signals(-code).name}"
    return "a case failed, see above" if code else None


def store(folder: Path, name: str, case: str) -> Path:
    """Writes a failing case as text: the target's name, then the literal."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.case"
    path.write_text(f"{name}\n{case}\n", encoding="utf-8")
    return path


def stored(path: Path) -> tuple[str, Any]:
    """The target's name and the case of a file that `store` wrote."""
    name, _, case = path.read_text(encoding="utf-8").partition("\n")
    return name, ast.literal_eval(case)
