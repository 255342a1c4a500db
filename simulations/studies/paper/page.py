"""The page that answers all questions, its table of figures, and its chart."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mediffusion_core.reporting.report import run_warnings
from mediffusion_core.run_io.provenance import shorten
from simulations.results.figures import markdown_table
from simulations.studies.paper.chart import save_differences
from simulations.studies.paper.figures import Figure
from simulations.studies.paper.plan import Plan, Work
from simulations.studies.paper.questions import Question
from simulations.studies.paper.variants import JOINT
from simulations.studies.result_files import write_csv, write_results
from simulations.studies.run_cells import COMMIT
from simulations.studies.sentences import written

TABLE, CHART = "results.csv", "answers.png"
COLUMNS = ("question", "row", "figure", "value", "low", "high", "images", "against")
SPECS: Mapping[str, str] = {
    "AUC difference": "+.3f",
    "auc lost": "+.3f",
    "FID": ".0f",
    "PSNR": ".1f",
    "psnr": ".1f",
    "diversity": ".2f",
    "flipped": ".0%",
    "independent flipped": ".0%",
    "energy inside": ".0%",
    "inside": ".0%",
    "pointing": ".0%",
    "l1": ".4f",
}
"""Formats of figures by the beginning of their names; `.3f` for the others."""


def write_page(plan: Plan, work: Work) -> Path:
    """Writes the page, `results.json`, the table and the chart from the cells that have finished.

    Of the cells nothing but their figures and their commits matters: not when they ran, nor how
    long they took.

    Returns:
        The written page.
    """
    study = work.found.study
    figures = {question.name: list(question.figures(work.found)) for question in work.questions}
    answers = {question.name: _answer(question, work) for question in work.questions}
    warnings = _warnings(work)
    rows = [_row(name, one) for name, found in figures.items() for one in found]
    results = {
        "overrides": list(plan.base),
        "seed": work.runs[0].seed,
        "commits": _commits(work),
        "answers": answers,
        "figures": [dict(zip(COLUMNS, row, strict=True)) for row in rows],
        "runs": {cell.title: cell.settings_hash for cell in work.runs},
        "warnings": warnings,
    }
    drawn = save_differences(work.found, study / CHART)
    parts = [
        "# Questions of the paper",
        _introduction(plan, work),
        *(
            _section(one, answers[one.name], figures[one.name], plan.is_default_base)
            for one in work.questions
        ),
        *([f"![AUC of each run less that of {work.found.title(JOINT)}]({CHART})"] if drawn else []),
        _warnings_section(warnings),
    ]
    page = write_results(study, results, "\n\n".join(parts) + "\n")
    write_csv(study / TABLE, COLUMNS, rows)
    return page


def _answer(question: Question, work: Work) -> str:
    found = work.found
    reasons = {found.not_measured(*one) for one in question.measures} - {""}
    if reasons:
        return f"Not answered: {'; '.join(sorted(reasons))}."
    cells = [
        *(found.runs[run] for run in question.runs),
        *(found.measure_cell(*one) for one in question.measures),
    ]
    done = sum(cell.figures(found.study) is not None for cell in cells)
    if done < len(cells):
        return f"Not answered yet: {done} of {len(cells)} cells have finished."
    return question.answer(found)


def _introduction(plan: Plan, work: Work) -> str:
    images = len(work.found.sites)
    commits = ", ".join(shorten(one) for one in _commits(work)) or "none yet"
    return (
        f"Base run `{' '.join(plan.base)}`, seed {work.runs[0].seed}, {images} test images. "
        f"Commits of the runs and measurements: {commits}. The paper is "
        "[2411.09434](https://arxiv.org/abs/2411.09434). Intervals are 95 %: of AUCs and of "
        "counterfactuals over patients, of FID and diversity over halves of the images. "
        "Differences are paired over the same patients, unless the answer compares two intervals. "
        "Intervals are not corrected for how many there are, so of 20 without any difference one "
        "is expected to exclude 0. With one seed they do not include the variation between "
        "trainings."
    )


def _commits(work: Work) -> list[str | None]:
    """The commits of the finished runs and measurements, each once."""
    found = work.found
    runs = (found.summary(run) for run in found.finished(found.runs))
    measures = (cell.figures(found.study) for cell in work.measures)
    return list(dict.fromkeys(one.get(COMMIT) for one in (*runs, *measures) if one is not None))


def _section(
    question: Question, answer: str, figures: Sequence[Figure], is_default_base: bool
) -> str:
    parts = [f"## {question.asks}", answer]
    if figures:
        rows = list(dict.fromkeys(one.row for one in figures))
        names = list(dict.fromkeys(one.name for one in figures))
        texts = {(one.row, one.name): written(one.estimate, _spec(one.name)) for one in figures}
        lines = [[row, *(texts.get((row, name), "") for name in names)] for row in rows]
        parts.append(markdown_table(["", *names], lines))
    if is_default_base:
        parts.append(f"Alone: `{question.alone}`.")
    return "\n\n".join(parts)


def _spec(name: str) -> str:
    return next((spec for start, spec in SPECS.items() if name.startswith(start)), ".3f")


def _row(question: str, figure: Figure) -> tuple[Any, ...]:
    one = figure.estimate
    ends = (one.value, one.low, one.high)
    return (question, figure.row, figure.name, *ends, one.count or "", figure.against)


def _warnings(work: Work) -> dict[str, list[str]]:
    """The warnings in the report of each finished run."""
    finished = work.found.finished(work.found.runs)
    return {
        work.found.title(run): [one.text for one in run_warnings(work.found.run_folder(run))]
        for run in finished
    }


def _warnings_section(warnings: Mapping[str, Sequence[str]]) -> str:
    lines = [[run, text] for run, texts in warnings.items() for text in texts]
    if not lines:
        return "## Warnings\n\nNo finished run has a warning in its report."
    return f"## Warnings\n\n{markdown_table(['run', 'warning'], lines)}"
