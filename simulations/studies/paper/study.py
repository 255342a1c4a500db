"""`fed-mediffusion study paper`: runs the cells that are missing, and writes the page."""

from pathlib import Path

from rich.console import Console

from configs.compose import compose
from simulations.engine.cell_pool import CellPool
from simulations.engine.preparation import prepare_images
from simulations.studies.paper.page import write_page
from simulations.studies.paper.plan import Plan, time_plan, work_of


def study_paper(plan: Plan, folder: Path, jobs: int) -> Path:
    """Runs the cells of the plan that are missing; the page is written anew after each.

    Args:
        plan: The questions, and the base run.
        folder: Folder of the cells and the page.
        jobs: Number of cells that run in parallel, each in one thread.

    Returns:
        The written page.

    Raises:
        UserError: a mistake in the settings, or a cell that failed.
        KeyboardInterrupt: if a signal asked for the end. A run resumes from its checkpoint.
    """
    console = Console(soft_wrap=True)
    dataset = prepare_images(compose("config", plan.base), console)
    work = work_of(plan, dataset, folder)
    table, text = time_plan(plan, work, jobs)
    console.print(table)
    console.print(text)

    def written() -> None:
        write_page(plan, work)

    written()
    with CellPool(folder, jobs, console) as pool:
        pool.add(work.runs)
        pool.run_all(written)
        for cell in work.measures:
            if cell.run.settings_hash not in pool.failures:
                cell.forget_reason(folder)
                pool.add([cell])
        pool.run_all(written)
    page = write_page(plan, work)
    pool.refuse_failures()
    return page
