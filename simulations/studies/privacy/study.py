"""`fed-mediffusion study privacy`: runs the cells that are missing, and writes the page."""

from pathlib import Path

from rich.console import Console

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from simulations.engine.cell_pool import CellPool
from simulations.engine.preparation import prepare_images
from simulations.studies.privacy.answers import alarms
from simulations.studies.privacy.cells import MEASURES
from simulations.studies.privacy.page import write_page
from simulations.studies.privacy.plan import Plan, Work, time_plan


def study_privacy(plan: Plan, folder: Path, jobs: int) -> Path:
    """Runs the cells of the plan that are missing; the page is written anew after each.

    Args:
        plan: The runs.
        folder: Folder of the cells and the page.
        jobs: Number of cells that run in parallel, each in one thread.

    Returns:
        The written page.

    Raises:
        UserError: a mistake in the settings, a cell that failed, or an audited lower bound above
            its promised ε.
        KeyboardInterrupt: if a signal asked for the end. A run resumes from its checkpoint.
    """
    console = Console(soft_wrap=True)
    prepare_images(compose("config", plan.base), console)
    work = Work(plan, folder)
    for line in time_plan(work, jobs):
        console.print(line)
    for cell in work.measures:
        cell.forget_reason(folder)
    with CellPool(folder, jobs, console) as pool:

        def go_on() -> None:
            write_page(work)
            _add(work, pool)

        go_on()
        pool.run_all(go_on)
    page = write_page(work)
    pool.refuse_failures()
    found = alarms(work)
    if found:
        raise UserError(
            f"an audit contradicts its promise ({len(found)} in all, see {page}): {found[0]}"
        )
    return page


def _add(work: Work, pool: CellPool) -> None:
    """Adds the runs seed by seed, and the measurements of those that have finished.

    A study that is stopped early so has all figures of its first seeds.
    """
    for seed in range(work.plan.seeds):
        runs = [run for (_, own), run in work.runs.items() if own == seed]
        pool.add(runs)
        finished = [key for key in work.finished() if key[1] == seed]
        pool.add(work.measure(key, name) for key in finished for name in MEASURES)
        if not all(pool.is_done(run) for run in runs):
            return
