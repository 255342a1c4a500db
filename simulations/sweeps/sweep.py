"""`fed-mediffusion sweep`: runs the cells that are missing, and compares all of them."""

import math
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout
from rich.console import Console

from mediffusion_core.common.errors import UserError
from mediffusion_core.settings import Settings
from simulations.engine.capacity import capacity
from simulations.engine.cell_pool import CellPool
from simulations.engine.preparation import prepare_images
from simulations.engine.simulate import EXIT_CODES, check
from simulations.sweeps.candidate import Candidate, candidate_of, images_differ, refuse_equal
from simulations.sweeps.cell import SweepCell
from simulations.sweeps.objective import check_objective
from simulations.sweeps.results import Results
from simulations.sweeps.search import Search, corners, require_optuna
from simulations.sweeps.space import parse_space


class Work(Protocol):
    """The cells of a sweep, in an order of their own."""

    @property
    def candidates(self) -> Sequence[Candidate]:
        """The candidates so far."""

    def run(self, pool: CellPool) -> None:
        """Runs their cells."""


@dataclass(frozen=True)
class Grid:
    """All combinations of listed values."""

    candidates: Sequence[Candidate]

    def run(self, pool: CellPool) -> None:
        """Runs the cells that have not finished."""
        pool.add(cell for one in self.candidates for cell in one.cells)
        pool.run_all()


def sweep(
    overrides: Sequence[str],
    trials: int | None,
    objective: str,
    workers: int | None,
    folder: Path,
) -> int:
    """Runs the cells of a grid or a search that have not finished, and returns the exit status.

    Args:
        overrides: Of all cells, in the grammar of Hydra's multirun.
        trials: Number of trials of a search; None for a grid.
        objective: Name of the figure that the results are sorted by.
        workers: Number of cells at once; None for as many as cores and memory allow.
        folder: Folder of the cells and the results.

    Raises:
        UserError: for a mistake in the command, the settings or the images, before a cell starts.
    """
    console = Console(soft_wrap=True)
    check_objective(objective)
    space = parse_space(overrides)
    if trials is None:
        checked = [candidate_of(space, chosen) for chosen in space.grid()]
    else:
        require_optuna()
        checked = corners(space)
    refuse_equal(checked)
    cells = [cell for one in checked for cell in one.cells]
    workers = _prepared(cells, objective, workers, console)
    with _held(folder):
        work: Work = Grid(checked)
        if trials is not None:
            at_once = math.ceil(workers / len(checked[0].cells))
            work = Search(space, checked[0], folder, trials, at_once, objective)
        pool = CellPool(folder, workers, console)
        stopped = _run(work, pool)
        results = Results(folder, work.candidates, pool.failures, objective)
        written = results.write({"command": list(overrides), "trials": trials})
    results.print(console)
    if stopped:
        console.print("interrupted; the same command goes on from here", style="red")
    elif pool.failures:
        errors = Console(stderr=True, soft_wrap=True, highlight=False)
        errors.print(f"{len(pool.failures)} cells failed; the same command runs them again")
    print(written, flush=True)
    status = "stopped" if stopped else "failed" if pool.failures else "completed"
    return EXIT_CODES[status]


def _run(work: Work, pool: CellPool) -> bool:
    """Runs the cells; returns whether a signal ended that early."""
    try:
        with pool:
            work.run(pool)
    except KeyboardInterrupt:
        return True
    return False


def _prepared(
    cells: Sequence[SweepCell], objective: str, workers: int | None, console: Console
) -> int:
    """Prepares the images, and finds mistakes that cells would find late.

    Returns:
        The number of cells at once.
    """
    for settings in {_checked_early(cell.settings): cell.settings for cell in cells}.values():
        check(settings)
    datasets = [prepare_images(cell.settings, console) for cell in images_differ(cells)]
    for dataset in datasets:
        check_objective(objective, dataset.store.classes)
    if workers is not None:
        return workers
    found = capacity(
        [cell.settings for cell in cells],
        max(len(dataset.store.classes) for dataset in datasets),
        max(len(client.rows) for dataset in datasets for client in dataset.clients),
        max(cell.threads for cell in cells),
    )
    console.print(f"cells at once: {found.workers} ({found.limits})", highlight=False)
    return found.workers


def _checked_early(settings: Settings) -> Hashable:
    """The settings that `check` depends on, but for the run's folder, which no cell has."""
    evaluation = settings.evaluation
    extractor = (evaluation.extractor, evaluation.inception_weights)
    return settings.device, settings.run.trackers, extractor


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keeps other sweeps out of the folder, which is made where missing.

    Raises:
        UserError: if another one runs there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "sweep.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"another sweep runs in {folder}; choose another --folder") from None
    try:
        yield
    finally:
        lock.release()
