"""The figures of the questions' tables, of those cells that have finished."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mediffusion_core.evaluation.bootstrap import Estimate
from simulations.studies.paper.found import Found, estimate_of
from simulations.studies.paper.variants import JOINT

AUC, AUC_DIFFERENCE, FID, DIVERSITY = "AUC", "AUC difference", "FID", "diversity"


class Figure(NamedTuple):
    """One figure of a table."""

    row: str
    """Title of the run, or the condition, that it is of."""
    name: str
    estimate: Estimate
    """The ends of the interval are nan where the figure has none."""
    against: str = ""
    """The row that a difference is from."""


def single(value: float | None, count: int = 0) -> Estimate:
    """A figure without an interval."""
    return Estimate(math.nan if value is None else value, math.nan, math.nan, count)


def auc_figures(
    found: Found, runs: Sequence[str], reference: str = JOINT, site: str | None = None
) -> list[Figure]:
    """AUC of each run, and its paired difference from the reference."""
    figures = []
    where = "" if site is None else f" at {site}"
    for run in found.finished(runs):
        figures.append(Figure(found.title(run), f"{AUC}{where}", found.auc(run, site)))
        if run != reference and found.finished([reference]):
            difference = found.difference(run, reference, site)
            name = f"{AUC_DIFFERENCE}{where}"
            figures.append(Figure(found.title(run), name, difference, found.title(reference)))
    return figures


def sample_figures(found: Found, runs: Iterable[str]) -> list[Figure]:
    """FID and diversity of each run's samples, and the FID of real images."""
    figures = []
    floor = None
    for run in runs:
        measured = found.measured("samples", run)
        if measured:
            names = {"fid": FID, "diversity": DIVERSITY}
            figures += [
                Figure(found.title(run), title, estimate_of(measured[name]))
                for name, title in names.items()
            ]
            floor = measured["fid_floor"]
    if floor is not None:
        figures.append(Figure("real images of other patients", FID, single(floor)))
    return figures


def summary_figures(found: Found, runs: Iterable[str], names: Mapping[str, str]) -> list[Figure]:
    """Figures of the runs' summaries, without intervals; `names` has their titles."""
    return [
        Figure(found.title(run), title, single(found.summary(run).get(name)))
        for run in found.finished(runs)
        for name, title in names.items()
    ]


def estimates(row: str, figures: Mapping[str, Any], names: Iterable[str]) -> list[Figure]:
    """Figures of a measurement."""
    return [Figure(row, _titled(name), estimate_of(figures[name])) for name in names]


def _titled(name: str) -> str:
    return name.replace("_", " ")
