"""`fed-mediffusion study labels`: runs the cells that are missing, and compares all of them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.common.parent import tied
from simulations.engine.preparation import prepare_images
from simulations.engine.processes import KEPT_MEMORY, noted_signals
from simulations.studies.labels.cells import Cell
from simulations.studies.labels.comparison import write_comparison
from simulations.studies.labels.methods import METHODS, Trial
from simulations.studies.labels.plan import Plan

LOG = "log.txt"


def study_labels(plan: Plan, folder: Path, workers: int) -> Path:
    """Runs the cells of the plan that are missing, and writes the comparison.

    Args:
        plan: The cells.
        folder: Folder of the cells and the comparison.
        workers: Number of cells that run in parallel, each in one thread.

    Returns:
        The written comparison.

    Raises:
        UserError: a mistake in the settings, or a cell that failed.
        KeyboardInterrupt: if a signal asked for the end. A federated run resumes from its
            checkpoint, a baseline starts again.
    """
    console = Console(soft_wrap=True)
    prepare_images(compose("config", plan.base), console)
    if plan.tune:
        run_cells([cell for _, _, cell in plan.trials()], folder, workers, console)
    chosen = choose_trials(plan, folder)
    cells = list(plan.cells(chosen))
    try:
        run_cells(cells, folder, workers, console)
    finally:
        written = write_comparison(plan, cells, chosen, folder, console)
    return written


def choose_trials(plan: Plan, folder: Path) -> dict[str, Trial]:
    """Each method's trial with the highest validation AUC; the first one if a trial is missing.

    For a method that trains at each site alone, it is the mean over the sites. Without tuning it is
    every method's first trial, even if trials of an earlier plan exist: otherwise tuned methods
    would be compared with untuned ones.
    """
    if not plan.tune:
        return {name: METHODS[name].trials[0] for name in plan.methods}
    figures: dict[str, dict[int, list[float]]] = {name: {} for name in plan.methods}
    missing = set()
    for name, number, cell in plan.trials():
        found = cell.figures(folder)
        if found is None or found["auc_pooled"] is None:
            missing.add(name)
        else:
            figures[name].setdefault(number, []).append(found["auc_pooled"])
    chosen = {}
    for name in plan.methods:
        trials = METHODS[name].trials
        means = {number: sum(values) / len(values) for number, values in figures[name].items()}
        best = 0 if name in missing else max(means, key=lambda number: means[number])
        chosen[name] = trials[best]
    return chosen


def run_cells(
    cells: Sequence[Cell],
    study: Path,
    workers: int,
    console: Console,
    finished: Callable[[], None] = lambda: None,
) -> None:
    """Runs the cells that have no figures yet, each in a process of its own.

    Args:
        cells: The cells; those of one hash run once.
        study: Folder of the study.
        workers: Number of cells that run in parallel, each in one thread.
        console: Shows the progress, and a line for each cell at its end.
        finished: Called after each cell.

    Raises:
        UserError: if a cell fails.
        KeyboardInterrupt: if a signal asked for the end.
    """
    distinct = list({cell.settings_hash: cell for cell in cells}.values())
    waiting = [cell for cell in distinct if cell.figures(study) is None]
    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    running: list[_Running] = []
    with noted_signals() as received, Progress(*columns, console=console) as progress:
        task = progress.add_task(
            "cells", total=len(distinct), completed=len(distinct) - len(waiting)
        )
        try:
            while (waiting or running) and not received:
                while waiting and len(running) < workers:
                    running.append(_Running.start(waiting.pop(0), study))
                ended = [one for one in running if one.process.poll() is not None]
                for one in ended:
                    running.remove(one)
                    one.finish(study, console)
                    progress.advance(task)
                    finished()
                names = ", ".join(one.cell.title for one in running)
                progress.update(task, description=f"cells ({names})" if names else "cells")
                time.sleep(0.2)
        finally:
            for one in running:
                one.stop()
    if received:
        raise KeyboardInterrupt


@dataclass
class _Running:
    """A cell that runs in a process of its own."""

    cell: Cell
    process: "subprocess.Popen[bytes]"
    log: IO[bytes]

    @classmethod
    def start(cls, cell: Cell, study: Path) -> "_Running":
        cell.describe(study)
        log = (cell.folder(study) / LOG).open("ab")
        process = subprocess.Popen(
            tied([sys.executable, "-m", cell.module, str(cell.folder(study))]),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **KEPT_MEMORY, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        return cls(cell, process, log)

    def finish(self, study: Path, console: Console) -> None:
        self.log.close()
        figures = self.cell.figures(study)
        if self.process.returncode or figures is None:
            path = self.cell.folder(study) / LOG
            last = path.read_text(errors="replace").strip().splitlines()[-1:]
            raise UserError(f"{self.cell.title} failed: {' '.join(last)} (full log: {path})")
        console.print(f"{self.cell.title}: {self.cell.result(figures)}")

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            self.process.terminate()
        self.process.wait()
        self.log.close()
