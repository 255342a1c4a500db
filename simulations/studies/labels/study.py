"""`fed-mediffusion study labels`: runs the cells that are missing, and compares all of them."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from configs.compose import compose
from mediffusion_core.models.public_encoders import build_encoder
from simulations.baselines.settings import FineTunedSettings, LinearSettings
from simulations.engine.cell_pool import CellPool
from simulations.engine.preparation import prepare_at_size, prepare_images
from simulations.studies.labels.cells import LabelsCell
from simulations.studies.labels.comparison import write_comparison
from simulations.studies.labels.methods import METHODS, Trial
from simulations.studies.labels.plan import Plan


def study_labels(plan: Plan, folder: Path, workers: int) -> Path:
    """Runs the cells of the plan that are missing, and writes the comparison.

    Args:
        plan: The cells.
        folder: Folder of the cells and the comparison.
        workers: Number of cells that run in parallel, each in one thread.

    Returns:
        The written comparison.

    Raises:
        UserError: a mistake in the settings, or cells that failed, once all others are done.
        KeyboardInterrupt: if a signal asked for the end. A federated run resumes from its
            checkpoint, a baseline starts again.
    """
    console = Console(soft_wrap=True)
    dataset = prepare_images(compose("config", plan.base), console)
    for encoder, image_size in _encoders([cell for _, _, cell in plan.trials()]):
        build_encoder(encoder, image_size)  # is its package installed?
        prepare_at_size(dataset, image_size, console)
    if plan.tune:
        _run_all([cell for _, _, cell in plan.trials()], folder, workers, console)
    chosen = choose_trials(plan, folder)
    cells = list(plan.cells(chosen))
    try:
        _run_all(cells, folder, workers, console)
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


def _encoders(cells: Sequence[LabelsCell]) -> list[tuple[str, int]]:
    """The public encoders of all cells, and the sides of their images in pixels."""
    needed = set()
    for cell in cells:
        alignment = cell.settings.training.joint.alignment
        if isinstance(cell.baseline, LinearSettings):
            needed.add((cell.baseline.features, alignment.image_size))
        elif isinstance(cell.baseline, FineTunedSettings):
            needed.add((cell.baseline.pretrained, cell.baseline.image_size))
        elif cell.baseline is None and alignment.enabled:
            needed.add((alignment.encoder, alignment.image_size))
    return sorted(needed)


def _run_all(cells: Sequence[LabelsCell], study: Path, workers: int, console: Console) -> None:
    with CellPool(study, workers, console) as pool:
        pool.add(cells)
        pool.run_all()
    pool.refuse_failures()
