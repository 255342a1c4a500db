"""Runs cells side by side, each in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.parent import tied
from simulations.engine.cells import Cell
from simulations.engine.processes import KEPT_MEMORY, noted_signals

LOG = "log.txt"
POLL = 0.2
"""Seconds between two looks at the processes."""


class CellPool:
    """Runs cells, up to a number at once; as a context it ends their processes when it is left.

    A finished cell is not run again. A failed one is reported by one line, and the others go on.

    Attributes:
        failures: By settings hash, the line of each cell that failed.
    """

    def __init__(self, root: Path, workers: int, console: Console) -> None:
        """Takes the folder of the command, the number of cells at once, and where to report."""
        self.failures: dict[str, str] = {}
        self._root, self._workers, self._console = root, workers, console
        self._known: set[str] = set()
        self._waiting: list[Cell] = []
        self._running: list[_Running] = []

    def __enter__(self) -> Self:
        columns = (
            TextColumn("[progress.description]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with ExitStack() as stack:
            self._received = stack.enter_context(noted_signals())
            self._progress = stack.enter_context(Progress(*columns, console=self._console))
            self._task = self._progress.add_task("cells", total=0)
            stack.callback(self._stop)
            self._exits = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def add(self, cells: Iterable[Cell]) -> None:
        """Lets cells wait for a worker, as far as they have not finished and are not there yet."""
        for cell in cells:
            if cell.settings_hash in self._known:
                continue
            self._known.add(cell.settings_hash)
            finished = cell.figures(self._root) is not None
            if not finished:
                self._waiting.append(cell)
            self._progress.update(self._task, total=len(self._known), advance=int(finished))

    def is_done(self, cell: Cell) -> bool:
        """Whether the cell has finished or failed."""
        return cell.settings_hash in self.failures or cell.figures(self._root) is not None

    def step(self) -> bool:
        """Starts waiting cells, takes in ended ones, and waits a moment.

        Returns:
            Whether a cell has ended.

        Raises:
            KeyboardInterrupt: if a signal asked for the end.
        """
        if self._received:
            raise KeyboardInterrupt
        while self._waiting and len(self._running) < self._workers:
            self._running.append(_Running.start(self._waiting.pop(0), self._root))
        ended = [one for one in self._running if one.process.poll() is not None]
        for one in ended:
            self._running.remove(one)
            self._take(one)
            self._progress.advance(self._task)
        names = ", ".join(one.cell.title for one in self._running)
        shown = f"cells ({names})" if names else "cells"
        self._progress.update(self._task, description=shown)
        time.sleep(POLL)
        return bool(ended)

    def run_all(self, finished: Callable[[], None] = lambda: None) -> None:
        """Runs until no cell waits or runs.

        Args:
            finished: Called after cells have ended.
        """
        while self._waiting or self._running:
            if self.step():
                finished()

    def refuse_failures(self) -> None:
        """Ends the command where a cell has failed.

        Raises:
            UserError: with the first failure, and the number of others.
        """
        if self.failures:
            first, *others = self.failures.values()
            raise UserError(f"{first}; {len(others)} more failed" if others else first)

    def report(self, mistake: str) -> None:
        """Prints a line about something that went wrong."""
        self._console.print(mistake, style="red", markup=False, highlight=False)

    def _take(self, ended: "_Running") -> None:
        ended.log.close()
        cell, status = ended.cell, ended.process.returncode
        figures = cell.figures(self._root)
        if status == 0 and figures is not None:
            self._console.print(f"{cell.title}: {cell.result(figures)}", markup=False)
            return
        path = cell.folder(self._root) / LOG
        lines = path.read_text(errors="replace").strip().splitlines()[-1:]
        if status < 0:
            lines = [f"killed by {signal.Signals(-status).name}"]
        failure = f"{cell.title} failed: {' '.join(lines)} (full log: {path})"
        self.failures[cell.settings_hash] = failure
        self.report(failure)

    def _stop(self) -> None:
        for one in self._running:
            with suppress(ProcessLookupError):
                one.process.terminate()
        for one in self._running:
            one.process.wait()
            one.log.close()


@dataclass(frozen=True)
class _Running:
    """A cell that runs."""

    cell: Cell
    process: "subprocess.Popen[bytes]"
    log: IO[bytes]

    @classmethod
    def start(cls, cell: Cell, root: Path) -> Self:
        cell.describe(root)
        log = (cell.folder(root) / LOG).open("ab")
        process = subprocess.Popen(
            tied([sys.executable, "-m", cell.module, str(cell.folder(root))]),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **KEPT_MEMORY, "OMP_NUM_THREADS": str(cell.threads)},
            # Otherwise it would get Ctrl-C from the terminal.
            start_new_session=True,
        )
        return cls(cell, process, log)
