"""The chart of the page: AUC of each run less that of the base run, with paired intervals."""

from pathlib import Path

from mediffusion_core.reporting.style import (
    BLUE,
    FAINT,
    MUTED,
    house_type,
    new_figure,
    save_figure,
)
from simulations.studies.paper.found import Found
from simulations.studies.paper.variants import JOINT
from simulations.studies.sentences import is_shown


def save_differences(found: Found, path: Path) -> bool:
    """Draws the differences; those whose interval includes 0 are grey.

    Returns:
        Whether anything was drawn.
    """
    if not found.finished([JOINT]):
        return False
    runs = [run for run in found.finished(found.runs) if run != JOINT and found.classifies(run)]
    if not runs:
        return False
    with house_type():
        figure = new_figure(6.4, 0.9 + 0.28 * len(runs), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=FAINT, lw=1)
        for height, run in enumerate(reversed(runs)):
            one = found.difference(run, JOINT)
            colour = BLUE if is_shown(one) else MUTED
            axes.plot([one.low, one.high], [height, height], color=colour, lw=1.6)
            axes.plot([one.value], [height], "o", color=colour, ms=4)
        axes.set_yticks(range(len(runs)), [found.title(run) for run in reversed(runs)])
        axes.set_xlabel(f"macro AUC less that of {found.title(JOINT)}, 95 % interval")
        axes.grid(axis="x")
        save_figure(figure, path)
    return True
