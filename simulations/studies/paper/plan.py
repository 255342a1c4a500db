"""The cells of the study, from the options of the command, and how long they take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset
from simulations.engine.cells import unfinished
from simulations.studies.paper.cells import PaperMeasure
from simulations.studies.paper.found import Found
from simulations.studies.paper.questions import QUESTIONS, Question
from simulations.studies.paper.variants import JOINT, Variant, variants_of
from simulations.studies.run_cells import RunCell, run_cell_of

DEFAULT_BASE = "experiment=paper_base"
MINUTES_OF_RUN, MINUTES_OF_MEASUREMENT = 3.3, 0.5
"""Estimates of `experiment=paper_base` on one core."""


@dataclass(frozen=True)
class Plan:
    """The questions, and the base run."""

    base: tuple[str, ...]
    """Overrides of the base run."""
    questions: tuple[str, ...]
    """Names of the questions."""

    @property
    def is_default_base(self) -> bool:
        """Whether the base run is that of the estimated minutes."""
        return self.base == (DEFAULT_BASE,)


@dataclass(frozen=True)
class Work:
    """The questions and cells of a plan, for given images."""

    questions: Sequence[Question]
    runs: Sequence[RunCell]
    measures: Sequence[PaperMeasure]
    found: Found


def make_plan(overrides: Sequence[str], questions: str | None) -> Plan:
    """The plan of the command's options; the base run is `paper_base` by default.

    Args:
        overrides: Of the base run.
        questions: Names separated by commas; None for all.

    Raises:
        UserError: if there is no such question.
    """
    names_data = any(one.startswith(("experiment=", "data=")) for one in overrides)
    base = tuple(overrides) if names_data else (DEFAULT_BASE, *overrides)
    allowed = tuple(QUESTIONS)
    chosen = allowed if questions is None else tuple(dict.fromkeys(questions.split(",")))
    unknown = [name for name in chosen if name not in allowed]
    if unknown:
        raise UserError(f"--questions: no question {unknown[0]!r}; allowed: {', '.join(allowed)}")
    return Plan(base, chosen)


def work_of(plan: Plan, dataset: FederatedDataset, study: Path) -> Work:
    """The cells of a plan; those that several questions need are there once.

    The last site is the one that a run leaves out.

    Raises:
        UserError: if the base run does not allow the change of a run.
    """
    last_site = dataset.centres[-1].site
    variants = variants_of(compose("config", plan.base), last_site)
    questions = [QUESTIONS[name] for name in plan.questions]
    runs = dict.fromkeys((JOINT, *(run for question in questions for run in question.runs)))
    cells = {name: variant_cell(variants[name], plan.base) for name in runs}
    found = Found(study, cells, np.array(dataset.site_of_test()), last_site)
    wanted = dict.fromkeys(one for question in questions for one in question.measures)
    measures = [found.measure_cell(measure, run) for measure, run in wanted]
    return Work(questions, list(cells.values()), measures, found)


def variant_cell(variant: Variant, base: tuple[str, ...]) -> RunCell:
    """The run of a variant, with the base's overrides."""
    return run_cell_of(variant.name, variant.title, (*base, *variant.overrides))


def time_plan(plan: Plan, work: Work, jobs: int) -> tuple[Table, str]:
    """The cells that each question waits for, and a line with the expected minutes."""
    study = work.found.study
    table = Table(title="questions", title_justify="left")
    table.add_column("question")
    for column in ("runs to do", "measurements to do"):
        table.add_column(column, justify="right")
    for question in work.questions:
        runs_to_do = len(question.runs) - len(work.found.finished(question.runs))
        cells = [work.found.measure_cell(*one) for one in question.measures]
        table.add_row(question.name, str(runs_to_do), str(len(unfinished(cells, study))))
    runs, measures = unfinished(work.runs, study), unfinished(work.measures, study)
    text = f"{len(runs)} of {len(work.runs)} runs and {len(measures)} of {len(work.measures)} "
    text += f"measurements to do, {jobs} at once"
    minutes = _minutes_of_run(plan, work)
    if minutes is None:
        return table, f"{text}; the first finished run will tell how long one takes"
    total = (len(runs) * minutes + len(measures) * MINUTES_OF_MEASUREMENT) / jobs
    return table, f"{text}: about {total:.0f} minutes with a core for each"


def _minutes_of_run(plan: Plan, work: Work) -> float | None:
    """Of the finished runs of this study, or as estimated for the default base."""
    finished: list[Mapping[str, float]] = [
        figures for cell in work.runs if (figures := cell.figures(work.found.study)) is not None
    ]
    if finished:
        return sum(one["seconds"] for one in finished) / len(finished) / 60
    return MINUTES_OF_RUN if plan.is_default_base else None
